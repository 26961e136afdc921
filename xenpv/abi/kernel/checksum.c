/* RFC 1071 and Toeplitz (Microsoft's RSS specification), over private memory. */
#include "access.h"

/* The folded, not inverted sum, as a big-endian number; an odd last byte is the high one. */
static uint32_t checksum_internet(const void *data, uint32_t size, uint32_t initial)
{
    const uint8_t *p = data;
    uint64_t sum = 0;
    uint32_t word;

    for (; size >= 4; size -= 4, p += 4) {
        memcpy(&word, p, 4);
        sum += word;
    }
    if (size) {
        word = 0;
        memcpy(&word, p, size);
        sum += word;
    }
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    sum = __builtin_bswap16((uint16_t)sum) + (uint64_t)initial;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint32_t)sum;
}

static uint32_t toeplitz(const void *key, uint32_t key_size, const void *input, uint32_t size)
{
    const uint8_t *k = key, *in = input;
    uint64_t prefix = 0, hash = 0;
    uint32_t next = 0;

    for (; next < 8; next++)
        prefix = prefix << 8 | (next < key_size ? k[next] : 0);
    for (uint32_t i = 0; i < size; i++) {
        for (int bit = 7; bit >= 0; bit--) {
            if (in[i] >> bit & 1)
                hash ^= prefix;
            prefix <<= 1;
        }
        prefix |= next < key_size ? k[next] : 0;
        next++;
    }
    return (uint32_t)(hash >> 32);
}

/* 1 while the calling thread has the interpreter: PyThreadState_GetDict is NULL without it. */
static int gil_held(void)
{
    return PyThreadState_GetDict() != NULL;
}
