/* fill.h - the RAM of a restored VM comes from where its checkpoint is kept: as much as there is time for while QEMU starts, the rest while the guest runs.
 *
 *   checkpoint ──write──────────► RAM file ──mapped──► QEMU       while QEMU starts: what was written last first, then in order of addresses
 *   checkpoint ──UFFDIO_COPY────────────────────────► QEMU       while the guest runs: what it waits for first, all else in order
 *
 * So the time until it runs does not grow with its RAM.
 *
 *  FI1 A page that is in the RAM file is right: it is the checkpoint's, or the guest has written it since. One that is not there is a hole. So a fill that
 *      was broken off can be taken up again, with another QEMU on the same file.
 *  FI2 Once the guest may look, a page comes into being by UFFDIO_COPY alone: as a whole, and not if it is there. It is protected from the
 *      start, so it does not count as written.
 *  FI3 Nobody but QEMU looks at a hole meanwhile: to look at one of shared memory fills it with zeros. What is captured, compared or rolled back
 *      was written by the guest, and so is there. (verify looks at all: then all is filled before the guest runs. A rollback that does not know what
 *      was written looks at all while the guest stands still, and puts right what it finds.)
 *  FI4 Room is not taken before all is filled: what was taken is no hole any more to a page fault.
 *  FI5 Who waits for a page waits for one call, not for the order: it is served by a thread of its own.
 * Source of the idea: post-copy migration (Hines, Deshpande, Gopalan, 2009). */
#ifndef VCFT_VM_FILL_H
#define VCFT_VM_FILL_H

#include "vm/memory.h"
#include "vm/vmm.h"

struct fill;

/* Begins to fill, beside the caller; beside: with what CPU time others leave, for it will be broken off. memory and from are borrowed until fill_free(). */
struct fill *fill_new(const struct memory *memory, const struct vm_fill *from, bool beside);
/* Waits until all is there. False: what should be there cannot be read, or not written. */
gboolean fill_finish(struct fill *fill, GError **error);
/* Breaks off, and goes on behind a guest that may run from now on: pages that QEMU misses come from here. uffd: QEMU's, registered for missing pages at
 * `address`; taken, also if this fails (then nothing but fill_free() may follow). */
gboolean fill_go_on_behind(struct fill *fill, int uffd, uint64_t address, GError **error);
/* Fills what is left of that, and returns when all is there. stop: gives up when it becomes true (NULL: never). Any one thread. */
gboolean fill_rest(struct fill *fill, const bool *stop, GError **error);
/* All is there. Any thread. */
bool fill_is_done(const struct fill *fill);
/* Serves no one any more: QEMU has been killed. */
void fill_stop(struct fill *fill);
void fill_free(struct fill *fill);

#endif
