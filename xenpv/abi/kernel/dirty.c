/*
 * Which pages of a domain differ from what another host was sent of them: log-dirty by
 * comparison (XEN_DOMCTL_SHADOW_OP_CLEAN tells it by write faults, which there are none of).
 *
 * A digest of 128 bits stands for each page that was sent, 0 for pages of zeros and those that
 * were not sent: a new domain's read zero. Pages are hashed in a private copy.
 */
#include "domain.h"

struct page_digest {
    uint64_t a, b;
};

struct dirty_log {
    domain *d;
    struct page_digest **leaves;    /* by pfn / P2M_LEAF; NULL: nothing was sent there */
    uint32_t nr_leaves;
};

typedef struct dirty_log dirty_log;

static dirty_log *dirty_log_new(domain *d)
{
    dirty_log *log = calloc(1, sizeof(*log));

    if (log)
        log->d = d;
    return log;
}

static void dirty_log_free(dirty_log *log)
{
    for (uint32_t leaf = 0; leaf < log->nr_leaves; leaf++)
        free(log->leaves[leaf]);
    free(log->leaves);
    free(log);
}

static inline uint64_t rotate64(uint64_t x, unsigned int n) { return x << n | x >> (64 - n); }

/* Each lane is a bijection of each of its words: a change of one word always shows. */
static struct page_digest page_digest(const uint64_t *words)
{
    const uint64_t k1 = 0x9e3779b97f4a7c15u, k2 = 0xbf58476d1ce4e5b9u, k3 = 0x94d049bb133111ebu;
    uint64_t lane[4] = { k1, k2, k3, k1 ^ k2 }, any = 0;
    struct page_digest digest;

    for (unsigned int i = 0; i < FRAME_SIZE / 8; i += 4) {
        for (unsigned int j = 0; j < 4; j++) {
            any |= words[i + j];
            lane[j] = rotate64(lane[j] + words[i + j] * k2, 31) * k1;
        }
    }
    if (!any)
        return (struct page_digest){ 0, 0 };
    digest.a = (lane[0] ^ rotate64(lane[1], 17)) * k3 + (lane[2] ^ rotate64(lane[3], 29));
    digest.b = (lane[1] + rotate64(lane[2], 11)) * k2 ^ (lane[3] + rotate64(lane[0], 41));
    digest.b |= !digest.a && !digest.b;
    return digest;
}

/* Of a page as it is now; zeros where it was never touched. Non-zero: there is no RAM. */
static int digest_now(struct call *c, domain *d, uint32_t pfn, struct page_digest *digest)
{
    uint32_t entry = p2m_entry(d, pfn);
    uint64_t words[FRAME_SIZE / 8];

    *digest = (struct page_digest){ 0, 0 };
    if (entry == LAZY_ENTRY)
        return 0;
    if (entry >> P2M_TYPE_SHIFT != P2M_RAM)
        return -ENOENT;
    shared_copy_out(c, words, frame_address(d->m, entry & P2M_FRAME_MASK), FRAME_SIZE);
    *digest = page_digest(words);
    return 0;
}

static struct page_digest *digest_sent(dirty_log *log, uint32_t pfn)
{
    uint32_t leaf = pfn / P2M_LEAF;

    if (leaf >= log->nr_leaves || !log->leaves[leaf])
        return NULL;
    return &log->leaves[leaf][pfn % P2M_LEAF];
}

static struct page_digest *digest_slot(dirty_log *log, uint32_t pfn)
{
    uint32_t leaf = pfn / P2M_LEAF;

    if (leaf >= log->nr_leaves) {
        uint32_t nr = leaf + 1 < 2 * log->nr_leaves ? 2 * log->nr_leaves : leaf + 1;
        struct page_digest **leaves = realloc(log->leaves, nr * sizeof(*leaves));

        if (!leaves)
            return NULL;
        memset(leaves + log->nr_leaves, 0, (nr - log->nr_leaves) * sizeof(*leaves));
        log->leaves = leaves;
        log->nr_leaves = nr;
    }
    if (!log->leaves[leaf])
        log->leaves[leaf] = calloc(P2M_LEAF, sizeof(struct page_digest));
    return log->leaves[leaf] ? &log->leaves[leaf][pfn % P2M_LEAF] : NULL;
}

/* These pages are sent as they are now: the caller read them, and nobody ran since. */
static int64_t dirty_log_sent(dirty_log *log, const uint32_t *pfns, uint32_t count)
{
    domain *d = log->d;
    struct call c = call_begin(d->m, d->domid, 0);

    KERNEL_ENTER(d->m);
    for (uint32_t i = 0; i < count; i++) {
        struct page_digest *slot = pfns[i] < P2M_PFNS ? digest_slot(log, pfns[i]) : NULL;

        if (!slot)
            return -ENOMEM;
        if (digest_now(&c, d, pfns[i], slot))
            return -ENOENT;
    }
    return call_end(&c, count);
}

/*
 * The pages from `from` on that are not what was sent, at most `max`. A page that is gone is
 * none: where it is again later, it reads zero. The next call goes on after the last.
 */
static int64_t dirty_log_read(dirty_log *log, uint32_t from, uint32_t *pfns, uint32_t max)
{
    domain *d = log->d;
    struct call c = call_begin(d->m, d->domid, 0);
    uint32_t nr = log->nr_leaves > d->nr_leaves ? log->nr_leaves : d->nr_leaves, n = 0;

    KERNEL_ENTER(d->m);
    for (uint32_t leaf = from / P2M_LEAF; leaf < nr && n < max; leaf++) {
        int untouched = leaf >= d->nr_leaves || !d->leaves[leaf] ||
                        d->leaves[leaf] == leaf_untouched;

        if (untouched && (leaf >= log->nr_leaves || !log->leaves[leaf]))
            continue;
        for (uint32_t i = leaf == from / P2M_LEAF ? from % P2M_LEAF : 0; i < P2M_LEAF; i++) {
            uint32_t pfn = leaf * P2M_LEAF + i;
            struct page_digest *sent = digest_sent(log, pfn), now;
            uint64_t a = sent ? sent->a : 0, b = sent ? sent->b : 0;

            if (digest_now(&c, d, pfn, &now) || (now.a == a && now.b == b))
                continue;
            if (n == max)
                break;
            pfns[n++] = pfn;
        }
    }
    return call_end(&c, n);
}
