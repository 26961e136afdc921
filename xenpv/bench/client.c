/*
 * A client of xenstored that does nothing else: one send and, mostly, one recv a request.
 *
 * It plays a script of requests on every socket: each is sent on all of them before the
 * answers of all are read. TRANSACTION in a header stands for the transaction that the
 * socket's last TRANSACTION_START opened.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "client.h"

#define SOCKETS_MAX 64
#define TRANSACTION 0xffffffffu

struct player {
    int socket;
    uint32_t transaction;
};

static int client_send(const struct player *player, const char *request, size_t size)
{
    char patched[sizeof(struct xsd_sockmsg) + XENSTORE_PAYLOAD_MAX];
    struct xsd_sockmsg header;

    memcpy(&header, request, sizeof(header));
    if (header.tx_id == TRANSACTION) {
        memcpy(patched, request, size);
        header.tx_id = player->transaction;
        memcpy(patched, &header, sizeof(header));
        request = patched;
    }
    return send(player->socket, request, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -errno;
}

/* Reads so many messages; 0, or less than 0 if the server hangs up, errs or talks nonsense. */
static int client_receive(struct player *player, uint32_t type, int messages)
{
    char data[4 * (sizeof(struct xsd_sockmsg) + XENSTORE_PAYLOAD_MAX) + 1];
    size_t got = 0, at = 0;

    while (messages) {
        struct xsd_sockmsg header = { .len = 0 };

        if (got - at >= sizeof(header))
            memcpy(&header, data + at, sizeof(header));
        if (got - at < sizeof(header) + header.len) {
            ssize_t more = recv(player->socket, data + got, sizeof(data) - 1 - got, 0);

            if (more <= 0)
                return more ? -errno : -EPIPE;
            got += more;
            continue;
        }
        if (header.type != type && header.type != XS_WATCH_EVENT)
            return -EPROTO;
        at += sizeof(header) + header.len;
        if (header.type == XS_TRANSACTION_START) {
            data[at] = 0;
            player->transaction = strtoul(data + at - header.len, NULL, 10);
        }
        messages--;
    }
    return got == at ? 0 : -EPROTO;
}

/*
 * `answers` are the messages that each request of the script brings. 0, or a negative errno
 * of the first answer that was not as it should be.
 */
int store_client_run(const int *sockets, int count, const char *script, int size,
                     const int *answers, int rounds)
{
    struct player players[SOCKETS_MAX];

    if (count > SOCKETS_MAX)
        return -EINVAL;
    for (int i = 0; i < count; i++)
        players[i] = (struct player){ .socket = sockets[i] };
    while (rounds-- > 0) {
        const int *expected = answers;
        struct xsd_sockmsg header;

        for (int at = 0; at < size; at += sizeof(header) + header.len, expected++) {
            int failed = 0;

            memcpy(&header, script + at, sizeof(header));
            for (int i = 0; i < count && !failed; i++)
                failed = client_send(&players[i], script + at, sizeof(header) + header.len);
            for (int i = count - 1; i >= 0 && !failed; i--)
                failed = client_receive(&players[i], header.type, *expected);
            if (failed)
                return failed;
        }
    }
    return 0;
}
