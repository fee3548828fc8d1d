/* net.c - the public functions: each makes a request of its arguments and has the thread carry it out (loop.c). See net.h. */
#include "net/net-private.h"

#include "base/must.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define HELD_BYTES_DEFAULT (64u << 20)
#define PORT_BYTES_DEFAULT (4u << 20)
#define GATE_LOOK (50 * NSEC_PER_USEC)
#define GATE_WAIT NSEC_PER_SEC

static gboolean boundary_init(struct net *net, GError **error)
{
	net->boundary = eventfd(0, EFD_CLOEXEC);
	if (net->boundary < 0)
		loop_error(error, "eventfd");
	return net->boundary >= 0;
}

struct net *net_new(struct host_id self, const char *address, uint16_t *inout_port, const struct tls_credentials *credentials,
                    const struct net_limits *limits, const struct net_callbacks *callbacks, void *user, GError **error)
{
	struct net *net = g_new0(struct net, 1);
	net->self = self;
	net->credentials = credentials;
	if (limits)
		net->limits = *limits;
	if (!net->limits.held_bytes)
		net->limits.held_bytes = HELD_BYTES_DEFAULT;
	if (!net->limits.port_bytes)
		net->limits.port_bytes = PORT_BYTES_DEFAULT;
	if (callbacks)
		net->callbacks = *callbacks;
	net->user = user;
	net->epoch = epoch_of(1);
	net->scratch = g_malloc(VCFT_FRAME_MAX);
	net->tunnel_listener.fd = -1;
	net->charges.fd[0] = net->charges.fd[1] = -1;
	net->boundary = -1;
	mac_init(&net->macs);
	if (loop_init(net, error) && charges_init(&net->charges, error) && boundary_init(net, error) &&
	    (!address || tunnel_listen(net, address, inout_port, error)) && loop_start(net, error))
		return net;
	net_free(net);
	return NULL;
}

void net_free(struct net *net)
{
	if (!net)
		return;
	loop_stop(net);
	struct request none = { 0 };
	switch_clear(net, &none);
	source_close(net, &net->tunnel_listener);
	ring_free(&net->pool, &net->ahead);
	frame_pool_clear(&net->pool);
	charges_clear(&net->charges);
	if (net->boundary >= 0)
		close(net->boundary);
	mac_clear(&net->macs);
	loop_clear(net);
	g_free(net->scratch);
	g_free(net);
}

gboolean net_add_network(struct net *net, uint32_t network, const char *uplink, bool commit, GError **error)
{
	MUST("N3", network < VCFT_NETWORK_MAX);
	struct request q = { .run = switch_add_network, .network = network, .text = uplink, .commit = commit, .error = error };
	return loop_call(net, &q);
}

void net_clear(struct net *net)
{
	struct request q = { .run = switch_clear };
	loop_call(net, &q);
}

gboolean net_add_vm(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count, const char *const *paths,
                    GError **error)
{
	MUST("N3", vm.n < VCFT_VM_MAX && nic_count <= VCFT_NIC_MAX);
	struct request q = { .run = port_add_vm, .vm = vm, .nics = nics, .nic_count = nic_count, .paths = paths, .error = error };
	return loop_call(net, &q);
}

void net_remove_vm(struct net *net, struct vm_id vm)
{
	MUST("N3", vm.n < VCFT_VM_MAX);
	struct request q = { .run = port_remove_vm_request, .vm = vm };
	loop_call(net, &q);
}

void net_place(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count, struct host_id host)
{
	MUST("N3", vm.n < VCFT_VM_MAX && nic_count <= VCFT_NIC_MAX && host.n && host.n <= VCFT_HOST_MAX && host.n != net->self.n);
	for (unsigned i = 0; i < nic_count; i++)
		MUST("N3", nics[i].network < VCFT_NETWORK_MAX);
	struct request q = { .run = switch_place_vm, .vm = vm, .nics = nics, .nic_count = nic_count, .host = host };
	loop_call(net, &q);
}

void net_add_host(struct net *net, struct host_id host, const char *name, const char *address, uint16_t port)
{
	MUST("N5", host.n && host.n <= VCFT_HOST_MAX);
	struct request q = { .run = tunnel_add_host, .host = host, .name = name, .text = address, .port = port };
	loop_call(net, &q);
}

void net_forget_host(struct net *net, struct host_id host)
{
	MUST("N5", host.n && host.n <= VCFT_HOST_MAX);
	struct request q = { .run = tunnel_forget_host, .host = host };
	loop_call(net, &q);
}

void net_cut(struct net *net, struct vm_id vm, struct epoch_id r)
{
	MUST("N4", vm.n < VCFT_VM_MAX);
	struct request q = { .run = record_cut, .vm = vm, .epoch = r };
	loop_call(net, &q);
}

/* Nothing tells the writer of a Unix socket that its reader has read, so it is asked. */
gboolean net_gate(struct net *net, struct vm_id vm)
{
	MUST("N9", vm.n < VCFT_VM_MAX);
	const struct timespec look = { .tv_nsec = GATE_LOOK };
	nsec_t end = clock_now() + GATE_WAIT;
	for (;;) {
		struct request q = { .run = port_gate, .vm = vm };
		gboolean rests = loop_call(net, &q);
		if (rests || clock_now() >= end)
			return rests;
		nanosleep(&look, NULL);
	}
}

gboolean net_gate_stuck(struct net *net, struct vm_id vm, bool throws, const int *ends)
{
	MUST("N9", vm.n < VCFT_VM_MAX);
	struct request q = { .run = port_gate_stuck, .vm = vm, .throws = throws, .ends = ends };
	return loop_call(net, &q);
}

void net_open_gate(struct net *net, struct vm_id vm)
{
	MUST("N9", vm.n < VCFT_VM_MAX);
	struct request q = { .run = port_open_gates, .vm = vm };
	loop_call(net, &q);
}

void net_vm_off(struct net *net, struct vm_id vm)
{
	MUST("N4", vm.n < VCFT_VM_MAX);
	struct request q = { .run = port_off, .vm = vm };
	loop_call(net, &q);
}

void net_marker(struct net *net, struct epoch_id r, host_mask others)
{
	struct request q = { .run = record_marker, .epoch = r, .others = others };
	loop_call(net, &q);
}

GBytes *net_take_record(struct net *net, struct vm_id vm, struct epoch_id r)
{
	MUST("N6", vm.n < VCFT_VM_MAX);
	struct request q = { .run = record_take, .vm = vm, .epoch = r };
	loop_call(net, &q);
	return q.record;
}

void net_discard(struct net *net, struct epoch_id r)
{
	struct request q = { .run = record_discard, .epoch = r };
	loop_call(net, &q);
}

void net_release(struct net *net, struct epoch_id r)
{
	struct request q = { .run = uplink_release_request, .epoch = r };
	loop_post(net, &q);
}

void net_freeze(struct net *net)
{
	struct request q = { .run = switch_freeze };
	loop_call(net, &q);
}

void net_rollback(struct net *net, struct generation g, struct epoch_id c)
{
	struct request q = { .run = switch_rollback, .generation = g, .epoch = c };
	loop_call(net, &q);
}

gboolean net_reinject(struct net *net, struct vm_id vm, GBytes *record, GError **error)
{
	MUST("N4", vm.n < VCFT_VM_MAX);
	struct request q = { .run = record_reinject, .vm = vm, .record = record, .error = error };
	return loop_call(net, &q);
}

void net_run(struct net *net)
{
	struct request q = { .run = switch_run };
	loop_call(net, &q);
}

void net_announce(struct net *net)
{
	struct request q = { .run = uplink_announce };
	loop_call(net, &q);
}

void net_stats(struct net *net, struct net_stats *ret_stats)
{
	struct request q = { .run = switch_stats, .stats = ret_stats };
	loop_call(net, &q);
}
