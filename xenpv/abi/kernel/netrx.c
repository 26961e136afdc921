/*
 * Frames that a guest received, in private memory: where their headers lie and what their
 * checksums say (win-xenvif parse.c and receiver.c). What becomes of a frame is Python's to
 * say; here each gets one word of facts, whose low 17 bits are what statistics count.
 */
#include "access.h"

/* Facts of a frame: callbacks.py's Traits, packet.py's Checksum from bit 8, and others. */
enum {
    NET_TAGGED = 0x1,
    NET_LLC_SNAP = 0x2,
    NET_IPV4 = 0x4,
    NET_IPV6 = 0x8,
    NET_TCP = 0x10,
    NET_UDP = 0x20,
    NET_GSO = 0x40,
    NET_IP_SUCCEEDED = 0x100,
    NET_IP_FAILED = 0x200,
    NET_IP_NOT_VALIDATED = 0x400,
    NET_TCP_SUCCEEDED = 0x800,
    NET_TCP_FAILED = 0x1000,
    NET_TCP_NOT_VALIDATED = 0x2000,
    NET_FRAGMENT = 0x20000,
    NET_MALFORMED = 0x40000,
    NET_MINE = 0x80000,
    NET_MULTICAST = 0x100000,
    NET_BROADCAST = 0x200000,
};

/* Of a frame's flags, above those of a response: its sums wait until it was cut. */
enum { NET_LARGE = 0x10000 };

/* packet.py's Offload. */
enum {
    NET_OFFLOAD_IPV4_HEADER = 0x4,
    NET_OFFLOAD_IPV4_TCP = 0x8,
    NET_OFFLOAD_IPV4_UDP = 0x10,
    NET_OFFLOAD_IPV6_TCP = 0x40,
    NET_OFFLOAD_IPV6_UDP = 0x80,
    NET_OFFLOAD_NEED_VALUE = 0x100,
};

/* Bytes from the frame's start, 0: there is none; `ethernet` and `llc` are lengths. */
struct net_headers {
    uint32_t facts;
    uint32_t length;            /* of all headers */
    uint32_t ethernet;
    uint32_t llc;
    uint32_t ip;
    uint32_t tcp;
    uint32_t udp;
    uint32_t end;               /* of the IP packet; padding may follow */
};

/* What the driver above asked for. */
struct net_receive {
    uint32_t offload;
    int calculate;
    const void *address;
};

enum {
    ETHERNET_HEADER = 14,
    ETHERNET_TAG = 4,
    ETHERNET_LENGTH_MAX = 1500,     /* up to here the type field is a length, LLC follows */
    EXTENSIONS_MAX = 100,
};

enum {
    IP_TCP = 6,
    IP_UDP = 17,
    IP_ROUTING = 43,
    IP_FRAGMENT = 44,
    IP_AUTHENTICATION = 51,
    IP_DESTINATION = 60,
};

/*
 * Responses from slot `first` on, each a packet of its own in a page of `pfns`: pieces for
 * gather, where each frame ends, its flags. How many there are before one that is not such.
 */
static int64_t net_single(const void *responses, uint32_t n, uint32_t first, const uint32_t *pfns,
                          uint32_t size, void *pieces, void *ends, void *flags)
{
    const struct netif_rx_response *rsp = responses;
    uint32_t *piece = pieces, *end = ends, *flag = flags, at = 0;

    for (uint32_t i = 0; i < n; i++, rsp++) {
        uint32_t slot = (first + i) & (size - 1);

        if (rsp->flags & ~(NETRXF_data_validated | NETRXF_csum_blank) || rsp->id != slot ||
            rsp->status < ETHERNET_HEADER || rsp->offset + rsp->status > (int)FRAME_SIZE)
            return i;
        *piece++ = pfns[slot];
        *piece++ = rsp->offset;
        *piece++ = (uint32_t)rsp->status;
        at += (uint32_t)rsp->status;
        end[i] = at;
        flag[i] = rsp->flags;
    }
    return n;
}

static uint32_t be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static int net_transport(const uint8_t *frame, uint32_t at, uint32_t protocol,
                         struct net_headers *h)
{
    uint32_t length;

    if (protocol == IP_UDP) {
        if (h->end - at < 8)
            return 0;
        h->udp = at;
        h->length = at + 8;
        h->facts |= NET_UDP;
    } else if (protocol == IP_TCP) {
        if (h->end - at < 20)
            return 0;
        length = (frame[at + 12] >> 4) * 4u;
        if (length < 20 || length > h->end - at)
            return 0;
        h->tcp = at;
        h->length = at + length;
        h->facts |= NET_TCP;
    }
    return 1;
}

static int net_ipv4(const uint8_t *frame, uint32_t size, uint32_t at, struct net_headers *h)
{
    const uint8_t *ip = frame + at;
    uint32_t header, total;

    if (size - at < 20)
        return 0;
    header = (ip[0] & 15) * 4u;
    total = be16(ip + 2);
    if (ip[0] >> 4 != 4 || header < 20 || total < header || total > size - at)
        return 0;
    h->ip = at;
    h->end = at + total;
    h->length = at + header;
    h->facts |= NET_IPV4;
    if (be16(ip + 6) & 0x3fff) {
        h->facts |= NET_FRAGMENT;
        return 1;
    }
    return net_transport(frame, h->length, ip[9], h);
}

/* One extension header at `at`: bytes of it, 0 if it is none, UINT32_MAX if it does not fit. */
static uint32_t net_extension(const uint8_t *frame, uint32_t at, uint32_t kind,
                              struct net_headers *h)
{
    uint32_t size;

    if (kind != 0 && kind != IP_ROUTING && kind != IP_FRAGMENT && kind != IP_AUTHENTICATION &&
        kind != IP_DESTINATION)
        return 0;
    if (h->end - at < 8)
        return UINT32_MAX;
    if (kind == IP_FRAGMENT) {
        if (be16(frame + at + 2) & 0xfff9)
            h->facts |= NET_FRAGMENT;
        return 8;
    }
    size = kind == IP_AUTHENTICATION ? (frame[at + 1] + 2) * 4u : (frame[at + 1] + 1) * 8u;
    return size > h->end - at ? UINT32_MAX : size;
}

static int net_ipv6(const uint8_t *frame, uint32_t size, uint32_t at, struct net_headers *h)
{
    const uint8_t *ip = frame + at;
    uint32_t kind, step;

    if (size - at < 40 || ip[0] >> 4 != 6 || be16(ip + 4) > size - at - 40)
        return 0;
    h->ip = at;
    h->end = at + 40 + be16(ip + 4);
    h->facts |= NET_IPV6;
    kind = ip[6];
    at += 40;
    for (uint32_t n = 0; n < EXTENSIONS_MAX; n++) {
        step = net_extension(frame, at, kind, h);
        if (step == UINT32_MAX)
            return 0;
        if (!step || h->facts & NET_FRAGMENT) {
            h->length = at + step;
            return h->facts & NET_FRAGMENT ? 1 : net_transport(frame, at, kind, h);
        }
        kind = frame[at];
        at += step;
    }
    return 0;
}

static int net_llc(const uint8_t *frame, uint32_t size, uint32_t at, struct net_headers *h)
{
    const uint8_t *llc = frame + at;
    uint32_t length = 3;

    if (size - at < 3)
        return 0;
    /* The lowest bit of a SAP says group or response. */
    if ((llc[0] & 0xfe) == 0xaa && (llc[1] & 0xfe) == 0xaa && llc[2] == 3)
        length = 8;
    if (size - at < length)
        return 0;
    h->llc = length;
    h->length = at + length;
    h->facts |= NET_LLC_SNAP;
    return 1;
}

static int net_ethernet(const uint8_t *frame, uint32_t size, struct net_headers *h)
{
    uint32_t at = ETHERNET_HEADER, type;

    if (size < ETHERNET_HEADER)
        return 0;
    type = be16(frame + 12);
    if (type == 0x8100) {
        if (size < ETHERNET_HEADER + ETHERNET_TAG)
            return 0;
        at += ETHERNET_TAG;
        type = be16(frame + 16);
        h->facts |= NET_TAGGED;
    }
    h->ethernet = h->length = at;
    if (type == 0x0800)
        return net_ipv4(frame, size, at, h);
    if (type == 0x86dd)
        return net_ipv6(frame, size, at, h);
    return type > ETHERNET_LENGTH_MAX || net_llc(frame, size, at, h);
}

/* Headers of one frame; 0, and NET_MALFORMED among the facts, where one is cut or lies. */
static int net_parse(const void *frame, uint32_t size, struct net_headers *h)
{
    *h = (struct net_headers){ .end = size };
    /* They are copied to one page. */
    if (net_ethernet(frame, size, h) && h->length <= FRAME_SIZE)
        return 1;
    h->facts |= NET_MALFORMED;
    return 0;
}

/* The sum over pseudo-header and packet: 0xffff where its checksum field is right. */
static uint32_t net_sum(const uint8_t *frame, const struct net_headers *h, uint32_t at,
                        uint32_t protocol, uint32_t size)
{
    const uint8_t *ip = frame + h->ip;
    uint32_t initial = protocol + size;

    initial = h->facts & NET_IPV4 ? checksum_internet(ip + 12, 8, initial)
                                  : checksum_internet(ip + 8, 32, initial);
    return checksum_internet(frame + at, size, initial);
}

static uint32_t net_check_ip(const struct net_receive *r, const uint8_t *frame,
                             const struct net_headers *h)
{
    if (!(r->offload & NET_OFFLOAD_IPV4_HEADER))
        return NET_IP_NOT_VALIDATED;
    if (checksum_internet(frame + h->ip, (frame[h->ip] & 15) * 4u, 0) == 0xffff)
        return NET_IP_SUCCEEDED;
    return NET_IP_FAILED;
}

/* Flags for a TCP packet, in the places of TCP; a validated one may get its sum written. */
static uint32_t net_check_transport(const struct net_receive *r, uint8_t *frame, uint32_t flags,
                                    const struct net_headers *h)
{
    int udp = !!(h->facts & NET_UDP), ipv4 = !!(h->facts & NET_IPV4);
    uint32_t at = udp ? h->udp : h->tcp, size = h->end - at, offload, found, sum, length;
    uint8_t *field = frame + at + (udp ? 6 : 16);

    if (udp) {
        length = be16(frame + at + 4);
        if (length >= 8 && length < size)
            size = length;
        offload = ipv4 ? NET_OFFLOAD_IPV4_UDP : NET_OFFLOAD_IPV6_UDP;
    } else {
        offload = ipv4 ? NET_OFFLOAD_IPV4_TCP : NET_OFFLOAD_IPV6_TCP;
    }
    if (!(r->offload & offload))
        found = NET_TCP_NOT_VALIDATED;
    else if (flags & NETRXF_data_validated || (udp && ipv4 && !be16(field)))
        found = NET_TCP_SUCCEEDED;
    else if (net_sum(frame, h, at, udp ? IP_UDP : IP_TCP, size) == 0xffff)
        found = NET_TCP_SUCCEEDED;
    else
        found = NET_TCP_FAILED;
    if (flags & NETRXF_data_validated && (r->calculate || r->offload & NET_OFFLOAD_NEED_VALUE)) {
        field[0] = field[1] = 0;
        sum = net_sum(frame, h, at, udp ? IP_UDP : IP_TCP, size) ^ 0xffff;
        if (udp && !sum)
            sum = 0xffff;           /* 0 would say that there is none (RFC 768) */
        field[0] = (uint8_t)(sum >> 8);
        field[1] = (uint8_t)sum;
    }
    return udp ? found << 3 : found;
}

static uint32_t net_destination(const struct net_receive *r, const uint8_t *frame)
{
    static const uint8_t broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    if (!(frame[0] & 1))
        return memcmp(frame, r->address, 6) ? 0 : NET_MINE;
    return memcmp(frame, broadcast, 6) ? NET_MULTICAST : NET_BROADCAST;
}

/*
 * n frames back to back in `data`; ends[i] is where frame i ends, flags[i] those of its first
 * response, NET_LARGE for one whose sums wait until it was cut. Facts of each in `facts`.
 * `calculate`: write the sums of validated packets. `address` is the current one, 6 bytes.
 */
static int net_receive(uint32_t offload, int calculate, const void *address, void *data,
                       uint32_t size, const uint32_t *ends, const uint32_t *flags, uint32_t n,
                       void *facts)
{
    struct net_receive r = { offload, calculate, address };
    uint32_t *fact = facts, at = 0;
    uint8_t *frame = data;
    struct net_headers h;

    for (uint32_t i = 0; i < n; i++) {
        if (ends[i] < at || ends[i] > size)
            return -EINVAL;
        if (net_parse(frame + at, ends[i] - at, &h)) {
            h.facts |= net_destination(&r, frame + at);
            if (!(flags[i] & NET_LARGE)) {
                if (h.facts & NET_IPV4)
                    h.facts |= net_check_ip(&r, frame + at, &h);
                if (h.facts & (NET_TCP | NET_UDP))
                    h.facts |= net_check_transport(&r, frame + at, flags[i], &h);
            }
        }
        fact[i] = h.facts;
        at = ends[i];
    }
    return 0;
}
