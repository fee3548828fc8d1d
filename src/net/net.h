/* net.h - the cluster's virtual Ethernet: switch, ports, tunnels, uplinks, in one thread.
 *
 *   QEMU ──unix stream──► port ──colour──► switch ──► port ──► QEMU          (cut rule at the receiving port: core/cut.h)
 *                                            ├──────► tunnel ═══ TCP ═══ tunnel ──► switch of another host
 *                                            └──────► uplink: held by epoch ──released──► TAP ──► outside
 *   outside ──► TAP ──► switch ──► local ports only
 *
 *  N1 A frame that a VM sends gets the generation and epoch of its port at that moment (its colour).
 *  N2 Paths: port → ports, tunnels, own uplink;  tunnel → ports;  uplink → ports. Never tunnel → tunnel, uplink → tunnel or tunnel → uplink:
 *     no loop, and a frame leaves by the uplink of the host that runs its sender.
 *  N3 The MACs of the cluster's NICs are pinned to their VM's host and port; others are learned; unknown ones are flooded.
 *  N4 Cut of a VM at r (while it is stopped): read out all that it sent (colour r); what it has not yet read of its sockets is added to
 *     its record of r; its ports move to r+1; held frames of colour r+1 are delivered.
 *  N5 Tunnels are FIFO; MARKER(r) goes behind the last frame of colour <= r.
 *  N6 The record of a VM for r is complete when all local VMs have been cut at r and MARKER(r) came from every other host with VMs.
 *  U1 A frame leaves by an uplink only if its epoch <= released (or the network is `output: immediate`). U2 In arrival order.
 *  U3 A rollback to c drops the held frames of epochs > c and no others.
 *
 * Threads: all functions below may be called from any thread; they are carried out by the switch's thread, in order of the calls, and
 * return when that is done unless the comment says otherwise. Callbacks come from the switch's thread: post them to the loop. */
#ifndef VCFT_NET_NET_H
#define VCFT_NET_NET_H

#include "base/types.h"

#include <glib.h>

struct net;

struct net_callbacks {
	/* The record of r is complete on this host (N6): take it with net_take_record(). */
	void (*record_complete)(struct epoch_id r, void *user);
	/* A tunnel to that host is up or down (informative; the group decides who is a member). */
	void (*tunnel_state)(struct host_id host, bool up, void *user);
};

struct net_nic_spec { uint32_t network; uint8_t mac[6]; };

struct net_limits {
	size_t held_bytes;      /* most bytes that one uplink holds; beyond it new outgoing frames are dropped (as a full queue does) */
	size_t port_bytes;      /* most bytes queued for one port */
};

/* Start the switch and listen for tunnels on address (numeric IPv4) and *port (0: any; the port taken is written back). */
struct net *net_new(struct host_id self, const char *address, uint16_t *inout_port, const struct net_limits *limits,
                    const struct net_callbacks *callbacks, void *user, GError **error);
/* Ends the thread, closes everything. */
void net_free(struct net *net);

/* Add network number `network` (0..VCFT_NETWORK_MAX-1). uplink: name of a TAP device that is opened or made, NULL: none. commit: hold its
 * output (U1). */
gboolean net_add_network(struct net *net, uint32_t network, const char *uplink, bool commit, GError **error);
/* Remove all networks, ports, tunnels and learned MACs. */
void net_clear(struct net *net);

/* Listen on the Unix stream sockets path[i] for a VM's NICs (QEMU's -netdev stream, server=off: each frame is a big-endian u32 length and
 * the bytes). The VM may connect, go away and connect again. Where a VM runs elsewhere, tell it with net_place(). */
gboolean net_add_vm(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count,
                    const char *const *paths, GError **error);
void net_remove_vm(struct net *net, struct vm_id vm);
/* Pin the MACs of a VM that runs on another host. */
void net_place(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count, struct host_id host);

/* Keep a tunnel to that host (connects again by itself until net_forget_host). The host with the lower id connects. */
void net_add_host(struct net *net, struct host_id host, const char *address, uint16_t port);
void net_forget_host(struct net *net, struct host_id host);

/* N4. Called while the VM is stopped; returns when its ports are in epoch r+1. */
void net_cut(struct net *net, struct vm_id vm, struct epoch_id r);
/* All local VMs have been cut at r: send MARKER(r) to the hosts of `others` and expect theirs; record_complete follows. */
void net_marker(struct net *net, struct epoch_id r, host_mask others);
/* The frames of VM's record for r (call after record_complete): encoded as in docs/format.md "channel record": u32 count, then per frame u8 nic,
 * u32 length, bytes. Ownership to the caller. */
GBytes *net_take_record(struct net *net, struct vm_id vm, struct epoch_id r);
/* r was aborted: drop its records. */
void net_discard(struct net *net, struct epoch_id r);

/* Let go of held frames of epochs <= r (U1). Does not wait. */
void net_release(struct net *net, struct epoch_id r);
/* The generation is over: nothing is delivered, held frames stay held, nothing is released, what VMs still send is dropped. */
void net_freeze(struct net *net);
/* Generation g starts from checkpoint c: drop frames in all queues, uplink frames of epochs > c, MACs learned; ports are in epoch c+1; g is
 * the tunnels' generation from now on. Nothing flows until net_run(). */
void net_rollback(struct net *net, struct generation g, struct epoch_id c);
/* Frames flow again. First deliver the record of c to the VM (NULL or empty: none). Call once per VM after it runs. */
void net_reinject(struct net *net, struct vm_id vm, GBytes *record, GError **error);
void net_run(struct net *net);
/* Send a gratuitous announcement (RARP, source MAC of each local NIC) out of the uplinks. */
void net_announce(struct net *net);

struct net_stats { uint64_t frames, dropped, recorded, held_frames, held_bytes, released; };
void net_stats(struct net *net, struct net_stats *ret_stats);

#endif
