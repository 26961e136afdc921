/*
 * Xen's own ring.h, driven by commands on standard input, so that another implementation
 * can be compared with it step by step. A command is a letter and a number:
 *   p n  front pushes n requests        -> notify
 *   t n  back takes at most n requests  -> their ids
 *   r n  back answers n requests        -> notify
 *   f    front takes all responses      -> their ids
 *   b    back's final check             -> more
 *   c    front's final check            -> more
 *   s n  both start at index n
 * After each command the four indices of the shared page are printed.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* What ring.h asks its includer for; it defines xen_mb and friends by them. */
#define mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define wmb() __atomic_thread_fence(__ATOMIC_RELEASE)

#include <xen/xen.h>
#include <xen/io/ring.h>

struct test_request {
    uint64_t id;
    uint8_t pad[104];
};

struct test_response {
    uint64_t id;
    uint64_t pad;
};

DEFINE_RING_TYPES(test, struct test_request, struct test_response);

static union {
    uint8_t page[4096];
    struct test_sring sring;
} shared;

int main(void)
{
    test_front_ring_t front;
    test_back_ring_t back;
    uint64_t next = 0, answer = 0;
    unsigned n;
    char command;

    SHARED_RING_INIT(&shared.sring);
    FRONT_RING_INIT(&front, &shared.sring, 4096);
    BACK_RING_INIT(&back, &shared.sring, 4096);
    while (scanf(" %c %u", &command, &n) == 2) {
        int flag = 0;

        switch (command) {
        case 's':
            shared.sring.req_prod = shared.sring.rsp_prod = n;
            shared.sring.req_event = shared.sring.rsp_event = n + 1;
            FRONT_RING_ATTACH(&front, &shared.sring, n, 4096);
            BACK_RING_ATTACH(&back, &shared.sring, n, 4096);
            front.rsp_cons = back.req_cons = n;
            break;
        case 'p':
            for (; n && !RING_FULL(&front); n--)
                RING_GET_REQUEST(&front, front.req_prod_pvt++)->id = next++;
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, flag);
            printf("%d", flag);
            break;
        case 't':
            for (; n && RING_HAS_UNCONSUMED_REQUESTS(&back); n--)
                printf("%llu,",
                       (unsigned long long)RING_GET_REQUEST(&back, back.req_cons++)->id);
            break;
        case 'r':
            for (; n && back.req_cons != back.rsp_prod_pvt; n--)
                RING_GET_RESPONSE(&back, back.rsp_prod_pvt++)->id = answer++;
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, flag);
            printf("%d", flag);
            break;
        case 'f':
            while (RING_HAS_UNCONSUMED_RESPONSES(&front))
                printf("%llu,",
                       (unsigned long long)RING_GET_RESPONSE(&front, front.rsp_cons++)->id);
            break;
        case 'b':
            RING_FINAL_CHECK_FOR_REQUESTS(&back, flag);
            printf("%d", !!flag);
            break;
        case 'c':
            RING_FINAL_CHECK_FOR_RESPONSES(&front, flag);
            printf("%d", !!flag);
            break;
        }
        printf(" %u %u %u %u\n", shared.sring.req_prod, shared.sring.req_event,
               shared.sring.rsp_prod, shared.sring.rsp_event);
    }
    return 0;
}
