/* What Python and the runtime say to each other, in the C that cffi's cdef reads. */

enum xenpv_op {
    OP_ALLOC_PAGES = 1, OP_FREE_PAGES, OP_GRANT_ACCESS, OP_END_ACCESS, OP_MAP, OP_UNMAP,
    OP_COPY_FROM, OP_COPY_TO, OP_BIND, OP_ALLOC_UNBOUND, OP_NOTIFY, OP_MASK, OP_UNMASK, OP_CLOSE,
    OP_READ, OP_WRITE, OP_RM, OP_TX_START, OP_TX_END, OP_WATCH, OP_UNWATCH, OP_SWITCH_STATE,
    OP_FATAL, OP_LOG, OP_NOW, OP_AFTER, OP_CANCEL, OP_IMAGE_SECTORS, OP_IMAGE_WRITABLE,
    OP_IMAGE_READ, OP_IMAGE_WRITE, OP_IMAGE_FLUSH, OP_TRANSMIT, OP_RECEIVE, OP_COMPLETE
};

/* What of the driver is called. */
enum xenpv_entry {
    ENTER_PROBE = 1, ENTER_OTHEREND, ENTER_REMOVE, ENTER_RECEIVE, ENTER_SEND, ENTER_SUBMIT,
    ENTER_HANDLER, ENTER_WATCH
};

/* How a call of the driver ended. */
enum xenpv_ending { ENDED = 0, ENDED_ABORTED, ENDED_FAILED };

/* Why the driver was stopped. */
enum xenpv_failure_kind {
    FAILED_GUARD = 1,       /* an access beside a page */
    FAILED_FREED,           /* of a page that was given back */
    FAILED_READONLY,        /* a write of a page that was mapped to be read */
    FAILED_SIGNAL,          /* `detail` is its number */
    FAILED_ASSERT,
    FAILED_WORK,            /* `detail` steps without an end */
    FAILED_STACK,
    FAILED_TIME,            /* `detail` ms of CPU without a step */
    FAILED_CALL,            /* a call with an argument that cannot be */
    FAILED_HEAP
};

struct xenpv_failure {
    int32_t kind;
    uint32_t size;          /* of the access in bytes */
    int64_t detail;         /* bytes beyond the page: negative before it */
    uint64_t address;
    uint64_t pc;
    char text[256];
};

/* What was asked of Python. `pc` is where in the driver. */
struct xenpv_call {
    uint32_t op;
    uint32_t in_size;
    uint32_t out_size;
    uint32_t unused;
    int64_t args[6];
    uint64_t pc;
};

/* What the driver is called with. */
struct xenpv_enter {
    uint32_t what;
    uint32_t size;          /* of `data` */
    uint64_t handler;
    uint64_t context;
    int64_t args[3];
    uint64_t budget;        /* steps until FAILED_WORK */
    uint32_t milliseconds;  /* of CPU until FAILED_TIME */
    uint32_t has_data;      /* a submit writes */
    uint32_t watched;       /* of a process of its own: a hook wants to hear of accesses */
    uint32_t unused;
};

/* Between Python and a driver in a process of its own: a header, and `size` bytes. */
enum xenpv_message {
    M_NEW = 1, M_ENTER, M_ANSWER,   /* of Python */
    M_READY, M_CALL, M_ACCESS, M_DONE
};

struct xenpv_header {
    uint32_t kind;
    uint32_t size;
};

struct xenpv_new {
    uint32_t domid, otherend_id;
    char nodename[256], otherend[256];
};

struct xenpv_access {
    uint32_t kind, frame, offset, size;
    uint64_t pc;
};

struct xenpv_done {
    int32_t ending;
    uint32_t blocks;        /* of its heap, not freed */
    int64_t result;
    uint64_t block_size, block_pc;
    struct xenpv_failure failure;
};
