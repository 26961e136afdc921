"""The keys of xl.cfg(5), Xen 4.17 and a few newer ones, by what xenpv makes of them."""

from __future__ import annotations

# Read into a DomainConfig (host/config.py).
READ = tuple(
    """
    acpi acpi_laptop_slate acpi_s3 acpi_s4 builder disk driver_domain localtime
    max_event_channels max_grant_frames max_grant_version max_maptrack_frames maxmem maxvcpus
    memory name nomigrate on_crash on_poweroff on_reboot on_soft_reset on_watchdog
    rtc_timeoffset stdvga type uuid vcpus vga videoram vif xend_suspend_evtchn_compat
    xenpv_personality
    """.split()  # noqa: SIM905 - a list would be a hundred lines
)

# They say what the guest boots, which is not modelled yet.
BOOT = tuple(
    """
    bootloader bootloader_args bootloader_restrict bootloader_user cmdline extra firmware
    firmware_override kernel ramdisk root
    """.split()  # noqa: SIM905 - as above
)

# They reach parts of a host that are not modelled: scheduling, firmware, emulated devices,
# displays, pass-through.
IDLE = tuple(
    """
    acpi_firmware altp2m altp2mhvm apic bios bios_path_override boot cap channel console
    cpu_weight cpuid cpus cpus_soft device_model_args device_model_args_hvm device_model_args_pv
    device_model_override device_model_stubdomain_override device_model_stubdomain_seclabel
    device_model_user device_model_version device_tree dm_restrict dtdev e820_host gfx_passthru
    gic_version hap hdtype hpet init_seclabel iomem ioports irqs keymap llc_colors mca_caps
    mmio_hole ms_vm_genid msr_relaxed nestedhvm nodes nographic nx oos opengl p9 pae passthrough
    pci pci_msitranslate pci_permissive pci_power_mgmt pci_seize pool pvcalls pvshim
    pvshim_cmdline pvshim_extra pvshim_path rdm rdm_mem_boundary sdl seclabel serial
    shadow_memory smbios_firmware soundhw spice spice_clipboard_sharing spice_image_compression
    spice_streaming_video spiceagent_mouse spicedisable_ticketing spicehost spicepasswd
    spiceport spicetls_port spiceusbredirection spicevdagent stubdomain_cmdline
    stubdomain_kernel stubdomain_memory stubdomain_ramdisk tee timer_mode tsc_mode usb usbctrl
    usbdev usbdevice usbversion vdispl vendor_device vfb virtio viridian vkb vkb_device
    vmtrace_buf_kb vnc vncdisplay vnclisten vncpasswd vncunused vnuma vpmu vpt_align vsnd vtpm
    vuart xauthority xen_platform_pci xenstore_feature_mask
    """.split()  # noqa: SIM905 - as above
)
