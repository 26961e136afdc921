/* A domain's own loads and stores: its pages by pfn, as its kernel and drivers reach them. */
#include "domain.h"

/*
 * A reference on a page of the domain's own RAM, so that it outlives decrease_reservation:
 * vcpu_info and FIFO pages (get_page_and_type of Xen). NULL if there is no such RAM. Every
 * hold is dropped, by the address it gave, before domain_relinquish.
 */
static uint8_t *page_hold(domain *d, uint32_t pfn)
{
    uint32_t entry = p2m_touch(d, pfn);

    if ((entry >> P2M_TYPE_SHIFT) != P2M_RAM)
        return NULL;
    frame_get(d->m, entry & P2M_FRAME_MASK);
    return frame_address(d->m, entry & P2M_FRAME_MASK);
}

static void page_drop(domain *d, uint8_t *page)
{
    frame_put(d->m, (uint32_t)((page - d->m->base) >> FRAME_SHIFT));
}

static int64_t page_copy(domain *d, uint32_t pfn, uint32_t offset, uint8_t *private, uint32_t size,
                         int write)
{
    struct call c = call_begin(d->m, d->domid, 0);

    KERNEL_ENTER(d->m);
    pfn += offset >> FRAME_SHIFT;
    offset &= FRAME_SIZE - 1;
    for (uint32_t done = 0; done < size;) {
        uint32_t n = FRAME_SIZE - offset < size - done ? FRAME_SIZE - offset : size - done;
        uint8_t *page = page_address(d, pfn, write);

        if (!page)
            return -EFAULT;
        if (write)
            shared_copy_in(&c, page + offset, private + done, n);
        else
            shared_copy_out(&c, private + done, page + offset, n);
        done += n;
        offset = 0;
        pfn++;
    }
    return call_end(&c, size);
}

static int64_t page_read(domain *d, uint32_t pfn, uint32_t offset, void *out, uint32_t size)
{
    return page_copy(d, pfn, offset, out, size, 0);
}

static int64_t page_write(domain *d, uint32_t pfn, uint32_t offset, const void *data, uint32_t size)
{
    return page_copy(d, pfn, offset, (uint8_t *)data, size, 1);
}

static int64_t page_load32(domain *d, uint32_t pfn, uint32_t offset)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *page;
    uint32_t value;

    KERNEL_ENTER(d->m);
    page = page_address(d, pfn, 0);
    if (!page || offset > FRAME_SIZE - 4 || offset % 4)
        return -EFAULT;
    value = shared_load32(&c, page + offset);
    return call_end(&c, value);
}

static int page_store32(domain *d, uint32_t pfn, uint32_t offset, uint32_t value)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *page;

    KERNEL_ENTER(d->m);
    page = page_address(d, pfn, 1);
    if (!page || offset > FRAME_SIZE - 4 || offset % 4)
        return -EFAULT;
    shared_store32(&c, page + offset, value);
    return (int)call_end(&c, 0);
}

#define UPDATE_OR 1
#define UPDATE_AND 2
#define UPDATE_EXCHANGE 3

/* A locked operation on an aligned u32 of the guest's own: what was there before. */
static int64_t page_update32(domain *d, uint32_t pfn, uint32_t offset, int how, uint32_t value)
{
    struct call c = call_begin(d->m, d->domid, 0);
    uint8_t *page;
    uint32_t before;

    KERNEL_ENTER(d->m);
    page = page_address(d, pfn, 1);
    if (!page || offset > FRAME_SIZE - 4 || offset % 4)
        return -EFAULT;
    if (how == UPDATE_OR)
        before = shared_fetch_or32(&c, page + offset, value);
    else if (how == UPDATE_AND)
        before = shared_fetch_and32(&c, page + offset, value);
    else
        before = shared_exchange32(&c, page + offset, value);
    return call_end(&c, before);
}

static int64_t page_list(domain *d, const uint32_t *list, uint32_t n, uint8_t *private,
                         uint32_t size, int write)
{
    uint32_t done = 0;

    for (uint32_t i = 0; i < n; i++, list += 3) {
        int64_t result;

        if (list[2] > size - done)
            return -EINVAL;
        result = page_copy(d, list[0], list[1], private + done, list[2], write);
        if (result < 0)
            return result;
        done += list[2];
    }
    return done;
}

static int64_t page_gather(domain *d, const uint32_t *list, uint32_t n, void *out, uint32_t size)
{
    return page_list(d, list, n, out, size, 0);
}

static int64_t page_scatter(domain *d, const uint32_t *list, uint32_t n, const void *data,
                            uint32_t size)
{
    return page_list(d, list, n, (uint8_t *)data, size, 1);
}
