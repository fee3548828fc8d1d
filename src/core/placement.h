/* placement.h - which host runs a VM, which hosts are its backups: pure functions of what is known to all.
 *
 *  PL1 A VM runs on a host that holds it exactly at c; c = 0 (power-off) is held by everyone.
 *  PL2 A host that could not start it (avoid) is the last choice. Else the host on which it runs already is kept, then the preferred
 *      one, then the host with the fewest VMs, then the lowest id.
 *  PL3 A VM's own host is never its backup. Backups that are complete are kept (up to B), then those that are being filled; new ones
 *      are the hosts with the fewest images, then the lowest id above the VM's host (cyclic), so that load spreads.
 * Source of the ordering: chosen so that the result depends on nothing but the arguments. Any thread; no allocation. */
#ifndef VCFT_CORE_PLACEMENT_H
#define VCFT_CORE_PLACEMENT_H

#include "base/messages.h"
#include "base/types.h"

struct placement_input {
	uint32_t vm_count;
	struct epoch_id c;
	host_mask hosts;                                       /* candidates */
	const struct host_id *preferred;                       /* vm_count entries */
	/* usable[v]: hosts that hold VM v exactly at c (not looked at for c = 0); live[v]: the host on which it ran last, {0}: none;
	 * avoid[v]: hosts that failed to start it */
	const host_mask *usable;
	const struct host_id *live;
	const host_mask *avoid;
};

/* Fill out[v].host and out[v].backups (complete ones only: usable hosts other than its own; none for c = 0, for nothing has been sent yet).
 * Returns false and the VM if one has no usable host; then out is undefined. */
bool placement_recover(const struct placement_input *in, struct message_placement *out, struct vm_id *ret_lost);

/* The backups for the next epoch: complete[v] kept, then what placement[v].backups has already, then as many added as are missing to B.
 * suspect[v]: not to be used. */
void placement_backups(uint32_t vm_count, unsigned wanted, host_mask hosts, const host_mask *complete, const host_mask *suspect,
                       struct message_placement *placement);

#endif
