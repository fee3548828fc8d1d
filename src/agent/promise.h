/* promise.h - the file `generation`: what this host has promised to its group, and must still know when its agent is started again (E9 of core/epoch.h).
 *
 *  PM1 What is read is what was written last, to the bit, or the agent does not start: a host that has forgotten a promise, or takes another number for it,
 *      lends its vote to a recovery that it must not take part in.
 *  PM2 The file is there, with its content, under its name, before anything is promised; later it is written in place, within one sector: a disk or a table
 *      of descriptors that is full by then must not keep a host from its promise.
 *  PM3 Two agents do not have it open at a time: one that was started by mistake must not take the other's folders.
 * One line of text, docs/format.md. Loop's thread. */
#ifndef VCFT_AGENT_PROMISE_H
#define VCFT_AGENT_PROMISE_H

#include "base/types.h"

#include <glib.h>
#include <stdbool.h>

#define PROMISE_BYTES 64u

struct promise { struct generation lived, seen; };

void promise_format(struct promise p, char out[static PROMISE_BYTES]);
bool promise_parse(const char *text, size_t n, struct promise *ret_promise);

/* The file of that folder, which is made (nothing promised) if it is not there: a descriptor to be closed, -1: error. */
int promise_open(const char *folder, struct promise *ret_promise, GError **error);
/* It is on the disk when this returns true. */
bool promise_write(int fd, struct promise p);

#endif
