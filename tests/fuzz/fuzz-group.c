/* fuzz-group.c - what corosync calls back: any members, rings, votes and messages, in any order, with node ids out of range and lists that contradict each
 * other. The group tells only members that are hosts, itself among them, and delivers only what a member's agent has sent (GC1-GC3).
 *
 * corosync's libraries are played here: they cannot be made to say what the daemon would not. */
#include "group/group.h"
#include "fuzz.h"

#include <corosync/cmap.h>
#include <corosync/cpg.h>
#include <corosync/quorum.h>
#include <glib.h>
#include <unistd.h>

#define SELF 2u

static struct { cpg_model_v1_data_t cpg; quorum_model_v1_data_t quorum; void *context; } plays;
static host_mask members;

cs_error_t cpg_model_initialize(cpg_handle_t *h, cpg_model_t m, cpg_model_data_t *d, void *c)
{
	(void)m;
	*h = 1;
	plays.cpg = *(cpg_model_v1_data_t *)d;
	plays.context = c;
	return CS_OK;
}
cs_error_t cpg_context_get(cpg_handle_t h, void **c) { (void)h; *c = plays.context; return CS_OK; }
cs_error_t cpg_finalize(cpg_handle_t h) { (void)h; return CS_OK; }
cs_error_t cpg_local_get(cpg_handle_t h, unsigned *node) { (void)h; *node = SELF; return CS_OK; }
cs_error_t cpg_join(cpg_handle_t h, const struct cpg_name *n) { (void)h, (void)n; return CS_OK; }
cs_error_t cpg_fd_get(cpg_handle_t h, int *fd) { (void)h; *fd = 0; return CS_OK; }
cs_error_t cpg_dispatch(cpg_handle_t h, cs_dispatch_flags_t f) { (void)h, (void)f; return CS_OK; }
cs_error_t cpg_mcast_joined(cpg_handle_t h, cpg_guarantee_t g, const struct iovec *v, unsigned n) { (void)h, (void)g, (void)v, (void)n; return CS_OK; }
cs_error_t cpg_iteration_initialize(cpg_handle_t h, cpg_iteration_type_t t, const struct cpg_name *n, cpg_iteration_handle_t *i)
{
	(void)h, (void)t, (void)n, (void)i;
	return CS_ERR_NOT_EXIST;
}
cs_error_t cpg_iteration_next(cpg_iteration_handle_t i, struct cpg_iteration_description_t *d) { (void)i, (void)d; return CS_ERR_NO_SECTIONS; }
cs_error_t cpg_iteration_finalize(cpg_iteration_handle_t i) { (void)i; return CS_OK; }
cs_error_t quorum_model_initialize(quorum_handle_t *h, quorum_model_t m, quorum_model_data_t *d, uint32_t *type, void *c)
{
	(void)m, (void)c;
	*h = 1;
	*type = QUORUM_SET;
	plays.quorum = *(quorum_model_v1_data_t *)d;
	return CS_OK;
}
cs_error_t quorum_context_get(quorum_handle_t h, const void **c) { (void)h; *c = plays.context; return CS_OK; }
cs_error_t quorum_finalize(quorum_handle_t h) { (void)h; return CS_OK; }
cs_error_t quorum_fd_get(quorum_handle_t h, int *fd) { (void)h; *fd = 0; return CS_OK; }
cs_error_t quorum_dispatch(quorum_handle_t h, cs_dispatch_flags_t f) { (void)h, (void)f; return CS_OK; }
cs_error_t quorum_trackstart(quorum_handle_t h, unsigned f) { (void)h, (void)f; return CS_OK; }
cs_error_t cmap_initialize(cmap_handle_t *h) { *h = 1; return CS_OK; }
cs_error_t cmap_finalize(cmap_handle_t h) { (void)h; return CS_OK; }
cs_error_t cmap_get_uint32(cmap_handle_t h, const char *k, uint32_t *v) { (void)h, (void)k, (void)v; return CS_ERR_NOT_EXIST; }
cs_error_t cmap_get_uint8(cmap_handle_t h, const char *k, uint8_t *v) { (void)h, (void)k, (void)v; return CS_ERR_NOT_EXIST; }
cs_error_t cmap_iter_init(cmap_handle_t h, const char *p, cmap_iter_handle_t *i) { (void)h, (void)p, (void)i; return CS_ERR_NOT_EXIST; }
cs_error_t cmap_iter_next(cmap_handle_t h, cmap_iter_handle_t i, char k[], size_t *n, cmap_value_types_t *t) { (void)h, (void)i, (void)k, (void)n, (void)t; return CS_ERR_NO_SECTIONS; }
cs_error_t cmap_iter_finalize(cmap_handle_t h, cmap_iter_handle_t i) { (void)h, (void)i; return CS_OK; }
const char *cs_strerror(cs_error_t e) { (void)e; return "an error"; }

static void on_membership(host_mask now, bool quorate, void *user)
{
	(void)quorate, (void)user;
	demand(!(now & 1) && host_in(now, (struct host_id){ SELF }));
	members = now;
}

static void on_delivery(struct host_id from, const uint8_t *data, size_t n, void *user)
{
	(void)user;
	demand(from.n >= 1 && from.n <= VCFT_HOST_MAX && (!n || data));
}

static void on_lost(const char *why, void *user)
{
	(void)user;
	demand(why && *why);
}

/* Nodes: few, so that they meet; sometimes none that can be a host. */
static uint32_t any_node(struct input *in)
{
	uint64_t k = take(in, 1);
	return k < 240 ? (uint32_t)k % 6 : k < 248 ? (uint32_t)(60 + k % 8) : UINT32_MAX;
}

static size_t any_list(struct input *in, struct cpg_address out[static 8])
{
	size_t n = take(in, 1) % 9;
	for (size_t i = 0; i < n; i++)
		out[i] = (struct cpg_address){ any_node(in), take(in, 1) & 3 ? (uint32_t)getpid() : 1, (uint32_t)take(in, 1) % 6 };
	return n;
}

static size_t any_nodes(struct input *in, uint32_t out[static 200])
{
	size_t n = take(in, 1) % 201;
	for (size_t i = 0; i < n; i++)
		out[i] = any_node(in);
	return n;
}

static void record(struct input *in)
{
	struct cpg_address now[8], left[8], joined[8];
	uint32_t nodes[200];
	size_t n;
	switch (take(in, 1) % 4) {
	case 0: {
		size_t m = any_list(in, now), l = any_list(in, left), j = any_list(in, joined);
		plays.cpg.cpg_confchg_fn(1, NULL, now, m, left, l, joined, j);
		break;
	}
	case 1: {
		struct cpg_ring_id ring = { any_node(in), take(in, 1) % 4 };
		n = any_nodes(in, nodes);
		plays.cpg.cpg_totem_confchg_fn(1, ring, (uint32_t)n, nodes);
		break;
	}
	case 2: {
		struct quorum_ring_id ring = { any_node(in), take(in, 1) % 4 };
		uint32_t quorate = (uint32_t)take(in, 1) & 1;
		n = any_nodes(in, nodes);
		plays.quorum.quorum_notify_fn(1, quorate, ring, (uint32_t)n, nodes);
		break;
	}
	default: {
		uint32_t from = any_node(in), pid = take(in, 1) & 1 ? (uint32_t)getpid() : 1;
		n = take(in, 1);
		const uint8_t *data = take_bytes(in, &n);
		plays.cpg.cpg_deliver_fn(1, NULL, from, pid, (void *)data, n);
	}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const struct group_callbacks callbacks = { .membership = on_membership, .deliver = on_delivery, .lost = on_lost };
	struct input in = { data, n };
	members = 0;
	struct group *g = group_corosync.join(&callbacks, NULL, NULL);
	demand(g != NULL);
	while (in.left)
		record(&in);
	while (g_main_context_pending(NULL) && in.left)
		g_main_context_iteration(NULL, FALSE);
	group_corosync.leave(g);
	return 0;
}
