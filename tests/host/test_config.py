from __future__ import annotations

import pytest

from tests.host.xl_vectors import CORPUS
from xenpv.errors import ConfigError
from xenpv.host import config, xlkeys
from xenpv.host.config import Action, DomainConfig, DomainType, Personality
from xenpv.host.diskspec import DiskSpec
from xenpv.host.position import Position
from xenpv.host.vifspec import NicType, VifSpec

UUID = "6b8e6c1e-5b0c-4a8e-9f1d-2b1c9d3e4f50"


def parse(*lines: str) -> DomainConfig:
    return config.parse("\n".join(('name="a"', *lines)), "f.cfg")


def refusal(*lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*lines)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_is_enough():
    assert parse() == DomainConfig(name="a")
    assert parse().warnings == ()


def test_reads_a_windows_guest():
    read = config.load(CORPUS / "windows.cfg")
    assert read == DomainConfig(
        name="win2022",
        uuid=UUID,
        memory_mib=4096,
        maxmem_mib=8192,
        videoram_kib=8192,
        vcpus=4,
        maxvcpus=4,
        disks=[
            DiskSpec.parse("/dev/vg/win2022-system,raw,hda,rw"),
            DiskSpec.parse("/dev/vg/win2022-data,raw,xvdb,rw"),
            DiskSpec.parse("vdev=hdc,access=ro,devtype=cdrom,target=/iso/drivers.iso"),
        ],
        vifs=[
            VifSpec(
                type=NicType.VIF_IOEMU,
                model="e1000",
                mac=bytes.fromhex("00163e4f0001"),
                devid=0,
            ),
            VifSpec(
                mac=bytes.fromhex("00163e4f0002"),
                bridge="xenbr1",
                rate=(250_000, 20_000),
                devid=1,
            ),
        ],
        on_crash=Action.PRESERVE,
        localtime=True,
    )
    assert read.disks[2].position == Position(str(CORPUS / "windows.cfg"), 14, 10)
    assert read.warnings == (
        f"{CORPUS / 'windows.cfg'}:9: not modelled and ignored: viridian, boot, vnc, vnclisten",
    )


def test_reads_a_driver_domain():
    read = config.load(CORPUS / "driver_domain.cfg")
    assert (read.driver_domain, read.nomigrate) == (True, True)
    assert (read.max_grant_frames, read.max_maptrack_frames) == (128, 2048)
    assert read.max_event_channels == 4096
    assert read.vifs[0].backend == "dom0"


def test_a_pv_guest_is_warned_that_booting_comes_later():
    read = config.load(CORPUS / "linux.cfg")
    assert read.type is DomainType.PV
    assert read.videoram_kib == 0
    assert read.warnings == (
        f"{CORPUS / 'linux.cfg'}:2: booting comes later: kernel, ramdisk, root, extra ignored",
    )


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([], "hvm"),
        (['type=""'], "hvm"),
        (['type="h"'], "hvm"),
        (['type="p"'], "pv"),
        (['type="pv"'], "pv"),
        (['type="pvh"'], "pvh"),
        (['builder="generic"'], "pv"),
        (['builder="hvm"', 'type="hvm"'], "hvm"),
        (["type=[]"], "hvm"),
    ],
)
def test_type_of_a_domain(lines, kind):
    assert parse(*lines).type is DomainType(kind)


@pytest.mark.parametrize(
    ("lines", "memory", "maxmem"),
    [
        ([], 32, 32),
        (["memory=64"], 64, 64),
        (["maxmem=64"], 64, 64),
        (["memory=64", "maxmem=128"], 64, 128),
        (['memory="0x40"'], 64, 64),
        (['memory="12x"'], 32, 32),
        (['memory="12x"', "maxmem=64"], 64, 64),
        (["memory=[1]"], 32, 32),
        (["memory=64", "memory+=128"], 32, 32),
    ],
)
def test_memory_of_a_domain(lines, memory, maxmem):
    read = parse(*lines)
    assert (read.memory_mib, read.maxmem_mib) == (memory, maxmem)


@pytest.mark.parametrize(
    ("lines", "vcpus", "maxvcpus"),
    [
        ([], 1, 1),
        (["vcpus=4"], 4, 4),
        (["vcpus=0"], 1, 1),
        (["maxvcpus=4"], 1, 4),
        (["vcpus=2", "maxvcpus=4"], 2, 4),
    ],
)
def test_vcpus_of_a_domain(lines, vcpus, maxvcpus):
    read = parse(*lines)
    assert (read.vcpus, read.maxvcpus) == (vcpus, maxvcpus)


@pytest.mark.parametrize(
    ("lines", "kib"),
    [
        ([], 8192),
        (["stdvga=1"], 16384),
        (['vga="stdvga"'], 16384),
        (['vga="none"', "videoram=8"], 0),
        (["videoram=20"], 20480),
        (['type="pvh"'], 0),
    ],
)
def test_video_memory_of_a_domain(lines, kib):
    assert parse(*lines).videoram_kib == kib


@pytest.mark.parametrize("key", config._ACTIONS)
@pytest.mark.parametrize("action", list(Action), ids=lambda action: action.value)
def test_actions(key, action):
    assert getattr(parse(f'{key}="{action.value}"'), key) is action


@pytest.mark.parametrize("key", config._FLAGS)
def test_flags(key):
    default = getattr(DomainConfig(name="a"), key)
    assert getattr(parse(f"{key}=0"), key) is False
    assert getattr(parse(f"{key}=2"), key) is True
    read = parse(f'{key}="yes"')
    assert getattr(read, key) is default
    assert read.warnings == (
        f"f.cfg:2: {key} is 'yes' and should be a number; the default is used",
    )


def test_the_personality_is_windows_unless_it_is_linux():
    assert parse().personality is Personality.WINDOWS
    assert parse('xenpv_personality="linux"').personality is Personality.LINUX


def test_clock_offset():
    assert parse('rtc_timeoffset="-3600"').rtc_timeoffset == -3600


def test_a_uuid_is_lower_case():
    assert parse(f'uuid="{UUID.upper()}"').uuid == UUID


def test_vifs_are_numbered_by_their_place_unless_they_say_otherwise():
    read = parse('vif=["", "devid=5", ""]')
    assert [vif.devid for vif in read.vifs] == [0, 5, 2]


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        (['memory="12x"'], "memory is '12x' and should be a number; the default is used"),
        (["memory=[1]"], "memory is a list and should be a number; the default is used"),
        (["memory+=64"], "memory is a number, which '+=' cannot give; the default is used"),
        (["on_crash=[1]"], "on_crash is a list and should be one value; the default is used"),
        (['vif="bridge=a"'], "vif is one value and should be a [list]; it is ignored"),
        (["disk=[[]]"], "a list inside disk; it and what follows it are ignored"),
        (["vcpus=0"], "a domain has at least 1, not 0"),
        (["memroy=64"], "unknown key memroy; did you mean memory?"),
        (["zzzzzz=1"], "unknown key zzzzzz"),
        (['kernel="/x"'], "booting comes later: kernel ignored"),
        (["vnc=1", 'boot="c"'], "not modelled and ignored: vnc, boot"),
        (['vif=["netdev=e"]'], "the vif option netdev is now called gatewaydev"),
        (['disk=["/x,raw,xvda,colo"]'], "disk option colo has no effect"),
        (
            ['disk=["/x,raw,0,w"]'],
            "the Windows driver does not present disk '0', device 0: it has targets 0 to 254",
        ),
    ],
)
def test_warns(lines, warning):
    assert parse(*lines).warnings == (f"f.cfg:2: {warning}",)


def test_what_follows_a_list_in_the_disks_is_ignored():
    read = parse('disk=["/x,raw,xvda", [], "/y,raw,xvdb"]')
    assert [disk.vdev for disk in read.disks] == ["xvda"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["memory=0"], "f.cfg:2:1: memory of 0: expected the domain's size in MiB"),
        (['memory="-1"'], "f.cfg:2:1: memory of -1:"),
        (["memory=64", "maxmem=32"], "f.cfg:2:1: memory of 64 MiB is more than maxmem, 32 MiB"),
        (["memory=0x7fffffffffffffff"], "f.cfg:2:1: memory of 9223372036854775807 MiB: at most"),
        (["memory=8"], "f.cfg:2:1: memory of 8 MiB leaves nothing beside 8192 KiB of video"),
        (["memory=9", "maxmem=64"], "f.cfg:2:1: memory of 9 MiB leaves nothing"),
        (["videoram=4"], "f.cfg:2:1: videoram of 4 MiB: the cirrus card needs 8"),
        (['vga="matrox"'], "f.cfg:2:1: unknown vga 'matrox'"),
        (["vcpus=4", "maxvcpus=2"], "f.cfg:3:1: maxvcpus of 2 is less than vcpus, 4"),
        (["vcpus=129"], "f.cfg:2:1: 129 vcpus: a hvm domain has at most 128"),
        (['on_crash="explode"'], "f.cfg:2:1: unknown on_crash 'explode': expected one of destroy"),
        (['type="vm"'], "f.cfg:2:1: unknown type 'vm': expected one of hvm, pv, pvh"),
        (['builder="kvm"'], "f.cfg:2:1: unknown builder 'kvm'"),
        (['type="pv"', 'builder="hvm"'], "f.cfg:3:1: builder contradicts the type, pv"),
        (['uuid="1234"'], "f.cfg:2:1: malformed uuid '1234'"),
        (['max_grant_frames="x"'], "f.cfg:2:1: max_grant_frames is 'x' and should be a number"),
        (["max_grant_version=3"], "f.cfg:2:1: max_grant_version of 3: expected 1 to 2"),
        (['xenpv_personality="bsd"'], "f.cfg:2:1: unknown xenpv_personality 'bsd'"),
        (['disk=["/x,xvda,w"]'], "f.cfg:2:7: config parsing error in disk specification: unknown"),
        (['disk=["/x,raw,foo"]'], "f.cfg:2:7: invalid or unsupported virtual disk identifier"),
        (['disk=[",raw,xvda"]'], "f.cfg:2:7: disk xvda has no target: only a cdrom may be empty"),
        (['disk=["/x,empty,xvda"]'], "f.cfg:2:7: disk xvda has no target"),
        (['disk=["/x,empty,hdc:cdrom"]'], "f.cfg:2:7: disk hdc has a target and the format empty"),
        (['vif=["birdge=a"]'], "f.cfg:2:6: unknown vif option 'birdge'"),
        (['vif=["", "rate=x"]'], "f.cfg:2:10: config parsing error in vif: invalid rate"),
        (['vif=["devid=1", ""]'], "f.cfg:2:17: two vifs have the devid 1"),
        (
            ['vif=["mac=00:16:3e:1:2:3",', '"mac=00-16-3E-01-02-03"]'],
            "f.cfg:3:1: mac 00:16:3e:01:02:03 is that of an earlier vif (f.cfg:2)",
        ),
    ],
)
def test_refuses_in_one_line(lines, message):
    assert refusal(*lines).startswith(message)


@pytest.mark.parametrize("text", ["", 'name=""', "name=[1]"])
def test_refuses_a_domain_without_a_name(text):
    with pytest.raises(ConfigError, match=r'the domain has no name: expected name = "..."$'):
        config.parse(text, "f.cfg")


@pytest.mark.parametrize("second", ["xvda", "d0p0", "51712", "0xca00"])
def test_refuses_two_disks_of_one_number(second):
    lines = ['disk=["/x,raw,xvda",', f'"/y,raw,{second}"]', 'xenpv_personality="linux"']
    assert (
        refusal(*lines) == f"f.cfg:3:1: disk {second} is device 51712, which xvda (f.cfg:2) is too"
    )


@pytest.mark.parametrize("second", ["hda", "sda", "xvda1"])
def test_disks_of_one_target_are_refused_for_windows_alone(second):
    lines = ['disk=["/x,raw,xvda",', f'"/y,raw,{second}"]']
    assert refusal(*lines) == (
        f"f.cfg:3:1: disk {second} is target 0 of the Windows driver, which xvda (f.cfg:2) is too"
    )
    assert len(parse(*lines, 'xenpv_personality="linux"').disks) == 2


def test_a_config_made_in_python_is_checked_alike():
    with pytest.raises(ConfigError, match=r"^disk xvda is device 51712, which xvda is too$"):
        DomainConfig(
            name="a", disks=[DiskSpec(target="/x", vdev="xvda"), DiskSpec(target="/y", vdev="xvda")]
        )


def test_overrides_win(tmp_path):
    path = tmp_path / "a.cfg"
    path.write_text('name="a"\nmemory=64')
    read = config.load(path, ["memory=128", 'name+="b"'])
    assert (read.name, read.memory_mib) == ("ab", 128)


def write(path, text):
    path.write_text(text)
    return path


def test_load_all_keeps_the_order(tmp_path):
    paths = [write(tmp_path / name, f'name="{name}"') for name in ("b.cfg", "a.cfg")]
    assert [read.name for read in config.load_all(paths)] == ["b.cfg", "a.cfg"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('name="x"', "2.cfg:1:1: name x is that of another domain"),
        (f'uuid="{UUID}"', f"2.cfg:1:1: uuid {UUID} is that of another domain"),
        ('vif=["mac=0:16:3e:0:0:1"]', "2.cfg:1:6: mac 00:16:3e:00:00:01 is that of an earlier vif"),
    ],
)
def test_load_all_refuses_what_two_domains_share(tmp_path, line, message):
    names = [] if line.startswith("name") else ['name="1"', 'name="2"']
    paths = [
        write(tmp_path / f"{index}.cfg", "\n".join([line, *names[index - 1 : index]]))
        for index in (1, 2)
    ]
    with pytest.raises(ConfigError) as caught:
        config.load_all(paths)
    assert str(caught.value) == f"{tmp_path}/{message} ({tmp_path}/1.cfg:1)"


def test_load_all_refuses_a_missing_file(tmp_path):
    with pytest.raises(
        ConfigError, match=r"none\.cfg: cannot read the configuration: No such file"
    ):
        config.load_all([tmp_path / "none.cfg"])


def test_no_key_is_listed_twice():
    keys = (*xlkeys.READ, *xlkeys.BOOT, *xlkeys.IDLE)
    assert len(set(keys)) == len(keys)


def test_every_key_that_is_read_is_listed():
    settings = {key: f"{key}=[]" for key in xlkeys.READ if key not in {"name", *config._RANGES}}
    warnings = parse(*settings.values()).warnings
    assert not [warning for warning in warnings if "unknown" in warning]
    # A list is the wrong type for every key but these.
    assert len(warnings) >= len(settings) - len({"disk", "vif"})
