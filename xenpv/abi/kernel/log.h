/* What memory.c has to know of log.c. */
#ifndef XENPV_LOG_H
#define XENPV_LOG_H

#include "access.h"

struct access_log;

static void log_chain(struct access_log *log, access_hook hook, void *context);
static int machine_unlog(machine *m);

#endif
