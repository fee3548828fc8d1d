/* placement.c - see placement.h.
 *
 * Both functions make two rounds: first what is settled already (VMs that stay where they are, backups that are kept) is counted, then
 * the rest is added one by one, each to the least loaded host. So what moves depends on all that stays, and nothing else. */
#include "core/placement.h"

#include "core/mutant.h"

#include <string.h>

typedef uint32_t load_table[VCFT_HOST_MAX + 1];

/* The least loaded host of a set, the first one in cyclic order behind `after` among equals; {0} for the empty set. */
static struct host_id least_loaded(host_mask set, const load_table load, struct host_id after)
{
	struct host_id best = { 0 };
	for (uint32_t i = 1; i <= VCFT_HOST_MAX; i++) {
		struct host_id h = { (after.n + i - 1) % VCFT_HOST_MAX + 1 };
		if (host_in(set, h) && (best.n == 0 || load[h.n] < load[best.n]))
			best = h;
	}
	return best;
}

/* PL1, PL2: where VM v may run, hosts to avoid only if there are no others. */
static host_mask may_run(const struct placement_input *in, uint32_t v)
{
	host_mask held = in->c.n == 0 ? in->hosts : in->usable[v] & in->hosts;
	return held & ~in->avoid[v] ? held & ~in->avoid[v] : held;
}

static struct host_id settled(const struct placement_input *in, uint32_t v)
{
	host_mask may = may_run(in, v);
	return host_in(may, in->live[v]) ? in->live[v] : host_in(may, in->preferred[v]) ? in->preferred[v] : (struct host_id){ 0 };
}

bool placement_recover(const struct placement_input *in, struct message_placement *out, struct vm_id *ret_lost)
{
	load_table load = { 0 };
	for (uint32_t v = 0; v < in->vm_count; v++) {
		out[v].host = settled(in, v);
		load[out[v].host.n]++;
	}
	for (uint32_t v = 0; v < in->vm_count; v++) {
		if (out[v].host.n == 0)
			load[(out[v].host = least_loaded(may_run(in, v), load, (struct host_id){ 0 })).n]++;
		if (out[v].host.n == 0) {
			*ret_lost = (struct vm_id){ v };
			return false;
		}
		out[v].backups = in->c.n == 0 ? 0 : in->usable[v] & in->hosts & ~host_bit(out[v].host);
	}
	return true;
}

/* At most `wanted` hosts of a set, in cyclic order behind `after`. */
static host_mask first_of(host_mask set, unsigned wanted, struct host_id after)
{
	host_mask out = 0;
	for (uint32_t i = 1; i <= VCFT_HOST_MAX && host_count(out) < wanted; i++)
		out |= set & host_bit((struct host_id){ (after.n + i - 1) % VCFT_HOST_MAX + 1 });
	return out;
}

static void count_images(host_mask backups, load_table load)
{
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		load[h] += host_in(backups, (struct host_id){ h });
}

void placement_backups(uint32_t vm_count, unsigned wanted, host_mask hosts, const host_mask *complete, const host_mask *suspect,
                       struct message_placement *placement)
{
	load_table load = { 0 };
	if (MUTANT(backup_at_home)) {
		for (uint32_t v = 0; v < vm_count; v++)
			placement[v].backups = host_bit(placement[v].host) | (complete[v] & hosts);
		return;
	}
	for (uint32_t v = 0; v < vm_count; v++) {
		host_mask may = hosts & ~suspect[v] & ~host_bit(placement[v].host);
		host_mask kept = first_of(complete[v] & may, wanted, placement[v].host);
		placement[v].backups = kept | first_of(placement[v].backups & may & ~kept, wanted - host_count(kept), placement[v].host);
		count_images(placement[v].backups, load);
	}
	for (uint32_t v = 0; v < vm_count; v++) {
		host_mask may = hosts & ~suspect[v] & ~host_bit(placement[v].host) & ~placement[v].backups;
		for (unsigned n = host_count(placement[v].backups); n < wanted && may; n++) {
			struct host_id h = least_loaded(may, load, placement[v].host);
			placement[v].backups |= host_bit(h);
			may &= ~host_bit(h);
			load[h.n]++;
		}
	}
}
