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
 *  N3 The MACs of the cluster's NICs are pinned to their VM's host and port. A VM sends with the address of its NIC or not at all: forged frames are
 *     dropped and counted. Only addresses outside are learned, of frames from an uplink; to unknown ones frames are flooded.
 *  N4 Cut of a VM at r (while it is stopped): read out all that it sent (colour r); what it has not yet read of its sockets is added to
 *     its record of r; its ports move to r+1; held frames of colour r+1 are delivered.
 *  N9 The gate of a VM is closed while it still runs, shortly before it is stopped: nothing is written to its sockets, and what was has been taken
 *     into the guest's memory, not only by QEMU, which would throw away at the stop what a full receive ring has no room for. The cut opens it. A guest
 *     whose ring stays full is not waited for: the one frame that QEMU holds for it is recorded and delivered again, in its place.
 *  N5 Tunnels are FIFO; MARKER(r) goes behind the last frame of colour <= r.
 *  N6 The record of a VM for r is complete when all local VMs have been cut at r and MARKER(r) came from every other host with VMs.
 *  N7 A tunnel is to the host whose certificate is at its other end (base/tls.h): who says that it is host n must hold the certificate of
 *     host n's name. Nobody else is told a byte. Without credentials the word of the other side counts.
 *  N8 A guest, or a QEMU that was taken over, may send what and as fast as it can, and read nothing. Memory stays bounded: a port has at most
 *     port_bytes queued, as much held, and its socket's buffer; an uplink held_bytes; a record RECORD_BYTES_MAX; a tunnel's queue see below. In each of
 *     these the senders share (struct share): one that floods takes no room from one that does not. A checkpoint waits for what a stopped VM has in
 *     its sockets when it is cut, and for no more. So a flood makes it later by no more than this: 1 s at the gate of a VM that takes nothing (net_gate(); it
 *     ends 10 s after its beginning even for one that takes a frame now and then: K9), the time in which a tunnel carries its queue in front of the marker,
 *     and that in which RECORD_BYTES_MAX for each VM go to its backups.
 *  U1 A frame leaves by an uplink only if its epoch <= released (or the network is `output: immediate`). U2 In arrival order.
 *  U3 A rollback to c drops the held frames of epochs > c and no others.
 *  U4 What came in by an uplink after c, or while the switch stood, is delivered again after a rollback to c.
 *
 * Threads: all functions below may be called from any thread; they are carried out by the switch's thread, in order of the calls, and
 * return when that is done unless the comment says otherwise. Callbacks come from the switch's thread: post them to the loop. */
#ifndef VCFT_NET_NET_H
#define VCFT_NET_NET_H

#include "base/tls.h"
#include "base/types.h"

#include <glib.h>

struct net;

struct net_callbacks {
	/* The record of r is complete on this host (N6): take it with net_take_record(). */
	void (*record_complete)(struct epoch_id r, void *user);
	/* A tunnel to that host is up or down. The group decides who is a member; but a tunnel that goes down within a generation has lost the
	 * frames that were under way in it, and its markers: no checkpoint is wrong by that (the live run has lost them as well, P1 holds), but
	 * P2 does not hold for those frames, and a record may never be complete. The owner is to treat it as trouble between two participants. */
	void (*tunnel_state)(struct host_id host, bool up, void *user);
	/* Worth a line in a log: why a connection was dropped. May be NULL. */
	void (*note)(const char *text, void *user);
};

struct net_nic_spec { uint32_t network; uint8_t mac[6]; };

/* 0: a default. Bytes are those of memory: a small frame takes more than it carries (frame_cost()). */
struct net_limits {
	size_t held_bytes;      /* most bytes of memory that one uplink holds, one sender at most half; beyond it new outgoing frames are dropped (as a full
	                         * queue does); 64 MiB */
	size_t port_bytes;      /* most bytes of memory queued for one port, one sender at most half, besides its socket's buffer; again as many may be held
	                         * for it; 4 MiB. A tunnel: four times that of frames' contents, and as many frames as would be that in memory. */
};

/* Start the switch and listen for tunnels on address (numeric IPv4; NULL: not at all) and *port (0: any; the port taken is written back). It is
 * in generation 0 and frozen: net_rollback() and net_run() start it. credentials (outlive it): NULL: tunnels are plain. */
struct net *net_new(struct host_id self, const char *address, uint16_t *inout_port, const struct tls_credentials *credentials,
                    const struct net_limits *limits, const struct net_callbacks *callbacks, void *user, GError **error);
/* Ends the thread, closes everything. */
void net_free(struct net *net);

/* Add network number `network` (0..VCFT_NETWORK_MAX-1). uplink: name of a TAP device that is opened or made, NULL: none. commit: hold its
 * output (U1). */
gboolean net_add_network(struct net *net, uint32_t network, const char *uplink, bool commit, GError **error);
/* Remove all networks, ports, tunnels and MACs; back to generation 0, nothing released: as net_new() left it. To be called before a cluster is
 * started whose epochs or generations begin again. */
void net_clear(struct net *net);

/* Listen on the Unix stream sockets path[i] for a VM's NICs (QEMU's -netdev stream, server=off: each frame is a big-endian u32 length and
 * the bytes). The VM may connect, go away and connect again; a second connection (of a spare process) waits until the first is gone. Its
 * ports are in the epoch of the last rollback or cut. A VM that is there already, here or elsewhere, is replaced. */
gboolean net_add_vm(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count,
                    const char *const *paths, GError **error);
void net_remove_vm(struct net *net, struct vm_id vm);
/* Pin the MACs of a VM that runs on another host (and remove it here). */
void net_place(struct net *net, struct vm_id vm, const struct net_nic_spec *nics, unsigned nic_count, struct host_id host);

/* Keep a tunnel to that host (connects again by itself until net_forget_host). The host with the lower id connects. N7: its certificate's name. */
void net_add_host(struct net *net, struct host_id host, const char *name, const char *address, uint16_t port);
void net_forget_host(struct net *net, struct host_id host);

/* N9. Close the gate; true when all that was written to the VM is in the guest, false if it is not after GATE_WAIT. The VM runs: some 0.1 ms if it is idle. */
gboolean net_gate(struct net *net, struct vm_id vm);
/* After net_gate() was false, and QEMU's main loop has gone round since: true: it has read nothing meanwhile, so it holds a frame that its guest has no
 * room for, or that the guest, standing still, does not get. throws: it will be stopped, and throws the frame away; else it keeps it. ends: QEMU's own ends
 * of the connections, one for each NIC, lent until the gate is opened: at the cut what QEMU has not read is taken out of them, so that the frame can be
 * written again in front of it; it must not read meanwhile. NULL: that cannot be said; the frame comes behind all others. */
gboolean net_gate_stuck(struct net *net, struct vm_id vm, bool throws, const int *ends);
/* Open it, where no cut has: the VM was not captured. */
void net_open_gate(struct net *net, struct vm_id vm);
/* N4. Called while the VM is stopped, its gate closed. Returns when its ports are in epoch r+1, and the gate open. No effect unless the switch
 * runs (a recovery was quicker). */
void net_cut(struct net *net, struct vm_id vm, struct epoch_id r);
/* The VM is off and reads nothing any more: until the next rollback nothing is kept for it. */
void net_vm_off(struct net *net, struct vm_id vm);
/* All local VMs have been cut at r (MUST N5; if one could not be, abort r instead): send MARKER(r) to the hosts of `others` and expect theirs;
 * record_complete follows (before this returns, if nobody is waited for). */
void net_marker(struct net *net, struct epoch_id r, host_mask others);
/* The frames of VM's record for r (call after record_complete): encoded as in docs/format.md "channel record": u32 count, then per frame u8 nic,
 * u32 length, bytes. Ownership to the caller. NULL: there is none (discarded, or a recovery was quicker), or it is too large for a
 * CHANNEL message: give the checkpoint up. Can be taken once. */
GBytes *net_take_record(struct net *net, struct vm_id vm, struct epoch_id r);
/* r was aborted: drop its records, and make none if a VM is cut at r after this. */
void net_discard(struct net *net, struct epoch_id r);

/* Let go of held frames of epochs <= r (U1). Does not wait. No effect while frozen; between net_rollback() and net_run() it takes effect at
 * net_run(). */
void net_release(struct net *net, struct epoch_id r);
/* The generation is over: nothing is delivered, held frames stay held, nothing is released, what VMs still send is dropped. */
void net_freeze(struct net *net);
/* Generation g starts from checkpoint c: drop frames in all queues, uplink frames of epochs > c, MACs learned; ports are in epoch c+1; g is
 * the tunnels' generation from now on. The VMs' connections are closed (the VM that goes on is a new process: start it after this, or let its
 * connection wait behind the old one). Nothing flows until net_run(): what the VMs send waits in their sockets, what other hosts send in
 * generation g is kept. g must be newer than the last (MUST N1), and c not older than what was released (MUST U3). */
void net_rollback(struct net *net, struct generation g, struct epoch_id c);
/* Queue the record of c for the VM, to be delivered by net_run() before anything else (NULL or empty: none). Once per VM, between net_rollback()
 * and net_run(). Fails, and delivers nothing, if it is not a record. */
gboolean net_reinject(struct net *net, struct vm_id vm, GBytes *record, GError **error);
/* Frames flow: first the records, then what other hosts have sent in this generation, then what the VMs here send. No effect unless after
 * net_rollback(). */
void net_run(struct net *net);
/* Send a gratuitous announcement (RARP, source MAC of each local NIC) out of the uplinks. After net_run(). */
void net_announce(struct net *net);

/* frames: that came in by ports, tunnels and uplinks; forged: with a source that is not their sender's, or none; dropped: those, late, of an old
 * generation, or one of the next two; dropped_full: for a full queue; dropped_down: the device of an uplink took none; recorded: added to channel
 * records; held_*: waiting in the uplinks now, bytes of memory; released: written to the uplinks; rests: how often nobody could be accepted for want of
 * descriptors. */
struct net_stats { uint64_t frames, forged, dropped, dropped_full, dropped_down, recorded, held_frames, held_bytes, released, rests; };
void net_stats(struct net *net, struct net_stats *ret_stats);

#endif
