/* net-private.h - what the files of src/net share. One struct net, touched by the switch's thread alone; the only fields that other
 * threads touch are the call queue, under its lock.
 *
 *   net.c      the public functions: each is one request to the thread
 *   loop.c     the thread: epoll, requests, timers
 *   frame.c    frames (counted references, a pool) and rings of them
 *   mac.c      who has which address: pinned and learned (N3)
 *   switch.c   where a frame goes (N1 N2 N3)
 *   port.c     a VM's NIC: socket, cut rule, gate, what is unread (N1 N4 N9)
 *   charge.c   what a send() adds to SIOCOUTQ
 *   record.c   the cut and the channel records (N4 N6)
 *   tunnel.c   to the other hosts (N5)
 *   uplink.c   to the outside; U1-U5 are the gate's, core/gate.h */
#ifndef VCFT_NET_NET_PRIVATE_H
#define VCFT_NET_NET_PRIVATE_H

#include "base/clock.h"
#include "base/messages.h"
#include "base/tls.h"
#include "base/types.h"
#include "core/gate.h"
#include "net/net.h"

#include <netinet/in.h>
#include <pthread.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#define FRAME_LEAST 14u                                     /* two MAC addresses and a type */
#define TUNNEL_HEAD_BYTES (MESSAGE_HEADER_BYTES + 24u)      /* before the bytes of a frame: header, generation, colour, network, checksum */
#define TUNNEL_HELLO_BYTES (MESSAGE_HEADER_BYTES + 20u)
#define TUNNEL_MARKER_BYTES (MESSAGE_HEADER_BYTES + 24u)
#define PORT_RX_BYTES (192u << 10)                          /* one read() from a VM; holds any frame */
#define TUNNEL_RX_BYTES (256u << 10)
#define SOCKET_SEND_BYTES (128 << 10)                       /* SO_SNDBUF towards a VM: as much as QEMU takes in a few rounds, for a gate waits for it (N9) */
#define RECORD_BYTES_MAX (60u << 20)                        /* a channel record must fit one CHANNEL message */
#define RECORD_BYTES_QUEUED (RECORD_BYTES_MAX - VCFT_NIC_MAX * (4u << 20)) /* for what is not in a socket; a socket has less */
#define LEARNED_MAX 8192u

/* ---- loop.c ---------------------------------------------------------------------------------------------------- */

/* Something with a file descriptor that epoll watches; fd -1: closed. */
struct source {
	int fd;
	uint32_t armed;
	void (*ready)(struct net *net, struct source *source, uint32_t events);
};

void source_open(struct net *net, struct source *source, int fd, uint32_t events,
                 void (*ready)(struct net *, struct source *, uint32_t));
void source_arm(struct net *net, struct source *source, uint32_t events);
void source_close(struct net *net, struct source *source);
/* Closed without closing its file descriptor, which is returned. */
int source_take(struct net *net, struct source *source);
/* accept4() on a listener has failed: if no descriptors are left it is not asked again for a moment (loop_listen_again()), for it would say at once
 * that somebody waits. */
void source_rest(struct net *net, struct source *listener);
/* Free memory that the current round of events may still point to. */
void loop_bury(struct net *net, void *memory);

/* A call of a public function, carried out by the thread: the arguments of all of them, and the answer. */
struct request {
	void (*run)(struct net *net, struct request *request);
	struct vm_id vm;
	struct host_id host;
	struct epoch_id epoch;
	struct generation generation;
	host_mask others;
	uint32_t network;
	uint16_t port;
	bool commit, throws;
	const int *ends;
	const char *text, *name;
	const struct net_nic_spec *nics;
	unsigned nic_count;
	const char *const *paths;
	GBytes *record;
	struct net_stats *stats;
	GError **error;
	gboolean ok;
	bool wait, done;
	struct request *next;
};

/* Have the thread run it and wait; returns request->ok. */
gboolean loop_call(struct net *net, struct request *request);
/* Have the thread run a copy of it, some time. */
void loop_post(struct net *net, const struct request *request);
/* What the thread needs; then the thread itself; its end; what it needed. */
gboolean loop_init(struct net *net, GError **error);
gboolean loop_start(struct net *net, GError **error);
void loop_stop(struct net *net);
void loop_clear(struct net *net);
/* Set *error from errno, with what was tried in front. */
void loop_error(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Tell the owner why something was dropped. */
void loop_note(struct net *net, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* ---- frame.c --------------------------------------------------------------------------------------------------- */

enum frame_kind { FRAME_ETHERNET, FRAME_MARKER };

struct frame {
	unsigned refs;
	uint32_t room, size;                    /* bytes of data */
	enum frame_kind kind;
	bool coloured;                          /* false: from the outside */
	struct generation generation;           /* N1 */
	struct epoch_id colour;                 /* N1; FRAME_MARKER: r */
	uint32_t network;
	struct host_id from;                    /* the tunnel it came in by; {0}: from this host */
	uint32_t sender;                        /* the VM, or SENDER_OTHER */
	struct frame *next_free;
	uint32_t head_bytes;                    /* of head in use: 0 until the frame first goes into a tunnel */
	uint8_t head[TUNNEL_HEAD_BYTES];
	uint8_t length[4];                      /* big-endian, directly before data: what a port writes */
	uint8_t data[];
};

/* Frames of two sizes come back to the pool: most of those that are many are small. */
#define FRAME_SMALL 192u        /* bytes of data */
#define FRAME_USUAL 2048u
struct frame_pool { struct frame *free[2]; unsigned count[2]; };

struct ring_entry { struct frame *frame; uint32_t charge; };
/* What a frame takes of memory while a queue holds it: limits are of memory, not of what the guest has sent. */
static inline size_t frame_cost(const struct frame *frame) { return sizeof *frame + frame->room + 2 * sizeof(struct ring_entry); }

/* N8: a bounded buffer shared by senders. A frame is taken if its sender would then have no more than is left free: one sender gets at most half, n
 * flooding senders at most an (n+1)th each, and there is always room for one that has nothing in it (dynamic thresholds: Choudhury, Hahne 1998). */
#define SENDER_OTHER VCFT_VM_MAX
struct share { size_t bytes, of[VCFT_VM_MAX + 1]; };

bool share_fits(const struct share *share, size_t limit, const struct frame *frame);
void share_take(struct share *share, const struct frame *frame);
void share_give(struct share *share, const struct frame *frame);

/* A frame with one reference; data NULL: to be filled in. */
struct frame *frame_new(struct frame_pool *pool, const void *data, size_t size);
struct frame *frame_ref(struct frame *frame);
void frame_unref(struct frame_pool *pool, struct frame *frame);
void frame_pool_clear(struct frame_pool *pool);

/* A queue of frames, each with a reference held. */
struct ring { struct ring_entry *at; size_t head, count, room; };

static inline struct ring_entry *ring_at(const struct ring *ring, size_t i) { return &ring->at[(ring->head + i) & (ring->room - 1)]; }
/* Takes over the caller's reference. */
void ring_push(struct ring *ring, struct frame *frame);
/* The reference goes to the caller. */
struct frame *ring_pop(struct ring *ring);
/* Drop the frames from number `from` on. */
void ring_cut(struct frame_pool *pool, struct ring *ring, size_t from);
void ring_clear(struct frame_pool *pool, struct ring *ring);
void ring_free(struct frame_pool *pool, struct ring *ring);

/* ---- mac.c ----------------------------------------------------------------------------------------------------- */

enum mac_place { MAC_PORT, MAC_HOST, MAC_UPLINK };

struct mac_entry {
	bool pinned;
	enum mac_place place;
	struct vm_id vm;                        /* of a pinned one */
	struct port *port;
	struct host_id host;
};

struct mac_table { GHashTable *entries; unsigned learned; };

void mac_init(struct mac_table *table);
void mac_clear(struct mac_table *table);
const struct mac_entry *mac_find(const struct mac_table *table, uint32_t network, const uint8_t mac[static 6]);
/* Pin or learn; learning never touches what is pinned (N3). Only what is outside is learned. */
void mac_pin(struct mac_table *table, uint32_t network, const uint8_t mac[static 6], struct mac_entry entry);
void mac_learn(struct mac_table *table, uint32_t network, const uint8_t mac[static 6], struct mac_entry entry);
void mac_unpin_vm(struct mac_table *table, struct vm_id vm);
void mac_forget_learned(struct mac_table *table);

/* ---- charge.c -------------------------------------------------------------------------------------------------- */

struct charges { int fd[2]; uint32_t *of; };

gboolean charges_init(struct charges *charges, GError **error);
void charges_clear(struct charges *charges);
/* What one send() of n bytes adds to SIOCOUTQ while none of it is read. */
uint32_t charge_of(struct charges *charges, size_t n);

/* ---- the parts of a net ---------------------------------------------------------------------------------------- */

enum net_state { NET_FROZEN, NET_PLACING, NET_RUNNING };    /* after net_new and net_freeze; after net_rollback; after net_run */

struct port {
	struct source listener, connection;
	struct vm_id vm;
	unsigned nic;
	uint32_t network;
	uint8_t mac[6];
	char *path;
	struct epoch_id epoch;
	uint8_t *rx;
	size_t rx_used;
	/* Towards the VM, in order: [0, sent) written into the socket and perhaps not yet read, [sent, count) not yet written. */
	struct ring queue;
	struct share unsent;
	size_t sent, written;                   /* written: bytes of queue[sent] that the socket has already taken, its length included (of a frame to come: a
	                                         * probe) */
	uint32_t written_charge;                /* what they have added to SIOCOUTQ */
	bool gated, stuck, throws;              /* N9: nothing is written; QEMU holds the last frame that it has read; and will throw it away */
	int gate_charge;                        /* N9: what was unread when the gate was last looked at */
	int end;                                /* N9: of one that is stuck: QEMU's end of the connection, borrowed; -1: not to be read */
	struct ring held;                       /* colour > epoch */
	struct share held_share;
	nsec_t noted;                           /* when the owner was last told something of it */
	struct ring record;                     /* of epoch - 1 */
	bool off;                               /* its VM reads nothing any more */
	bool dirty;
	struct port *next_dirty;
	struct port *next;                      /* of the same network */
};

enum record_state { RECORD_NONE, RECORD_OPEN, RECORD_COMPLETE, RECORD_TAKEN };

struct vm {
	bool known;
	struct host_id host;                    /* self: ports[] are here */
	unsigned nic_count;
	struct net_nic_spec nics[VCFT_NIC_MAX];
	struct port *ports[VCFT_NIC_MAX];
	enum record_state record;
	struct epoch_id record_epoch;
	size_t record_bytes;                    /* of memory, never more than RECORD_BYTES_MAX: so what is encoded is less */
};

struct uplink {
	struct source tap;
	uint32_t network;
	struct net *net;
	struct gate *gate;
	struct share share;                     /* of what the gate holds */
};

struct network {
	bool known;
	struct port *ports;
	struct uplink *uplink;
	host_mask hosts;                        /* other hosts with VMs on it */
};

enum tunnel_state { TUNNEL_DOWN, TUNNEL_CONNECTING, TUNNEL_SECURING, TUNNEL_GREETING, TUNNEL_UP };

struct tunnel {
	struct source connection;
	struct tls *tls;                        /* of the connection; NULL: there is none yet */
	struct host_id host;
	char name[VCFT_NAME_MAX + 1];           /* what its certificate must say */
	struct sockaddr_in address;
	enum tunnel_state state;
	nsec_t timer, backoff;                  /* DOWN: try again at; CONNECTING, SECURING, GREETING: give up at */
	char *refusal;                          /* the last that was noted: not once for each attempt */
	uint8_t *rx;
	size_t rx_used;
	struct ring queue;
	size_t queue_bytes, written;            /* written: bytes of queue[0] that the socket has already taken */
	struct epoch_id marker_sent;
	bool dirty;
	struct tunnel *next_dirty;
};

/* Somebody who has connected to us and has not yet been recognised. */
struct stranger {
	struct source connection;
	struct tls *tls;
	bool secured;                           /* its certificate is the cluster's; whose, its HELLO must say */
	struct host_id host;                    /* {0}: no whole HELLO yet */
	nsec_t deadline;
	size_t used;
	uint8_t hello[TUNNEL_HELLO_BYTES];
	struct stranger *next;
};

struct net {
	struct host_id self;
	struct net_limits limits;
	const struct tls_credentials *credentials;      /* NULL: plain */
	struct net_callbacks callbacks;
	void *user;

	enum net_state state;
	struct generation generation;
	struct epoch_id epoch;                  /* of a port that is added now */
	struct epoch_id discarded;
	struct {
		bool open;
		struct epoch_id r;
		host_mask others;
	} marking;
	struct epoch_id marker_seen[VCFT_HOST_MAX + 1];
	struct ring ahead;                      /* from tunnels, for a generation that has not started here */
	size_t ahead_bytes;

	struct network networks[VCFT_NETWORK_MAX];
	struct vm vms[VCFT_VM_MAX];
	struct tunnel *tunnels[VCFT_HOST_MAX + 1];
	struct stranger *strangers;
	unsigned stranger_count;
	struct source tunnel_listener;
	struct mac_table macs;
	struct charges charges;
	int boundary;                           /* goes with every frame to a VM, for nothing but that a read ends there (port.c) */
	struct frame_pool pool;
	struct port *dirty_ports;
	struct tunnel *dirty_tunnels;
	struct net_stats stats;
	uint8_t *scratch;                       /* VCFT_FRAME_MAX bytes */

	int epoll;
	struct source wakeup;
	GThread *thread;
	bool quit;
	nsec_t next_timer;                      /* INT64_MAX: none */
	nsec_t rests_until;                     /* listeners that rest; 0: none */
	GPtrArray *graves;

	pthread_mutex_t lock;                            /* guards the three below and request.done; never held while anything else is done */
	pthread_cond_t answered;
	struct request *first, **last;
	int pending;                            /* atomic: there are requests */
};

/* ---- switch.c -------------------------------------------------------------------------------------------------- */

/* Each takes over the caller's reference. */
void switch_from_port(struct net *net, struct port *port, struct frame *frame);
void switch_from_tunnel(struct net *net, struct frame *frame);
void switch_from_uplink(struct net *net, struct frame *frame);
/* Write out what the ports and tunnels have been given. */
void switch_flush(struct net *net);
/* Work out again which hosts have VMs on each network. */
void switch_place(struct net *net);
void switch_add_network(struct net *net, struct request *request);
void switch_place_vm(struct net *net, struct request *request);
void switch_clear(struct net *net, struct request *request);
void switch_freeze(struct net *net, struct request *request);
void switch_rollback(struct net *net, struct request *request);
void switch_run(struct net *net, struct request *request);
void switch_stats(struct net *net, struct request *request);

/* ---- port.c ---------------------------------------------------------------------------------------------------- */

void port_add_vm(struct net *net, struct request *request);
void port_remove_vm(struct net *net, struct vm_id vm);
void port_remove_vm_request(struct net *net, struct request *request);
/* Give the VM a frame by the cut rule (borrows the reference). */
void port_offer(struct net *net, struct port *port, struct frame *frame);
/* Put a frame behind the others; false: the queue is full, unless `always` (borrows the reference). */
bool port_queue(struct net *net, struct port *port, struct frame *frame, bool always);
void port_flush(struct net *net, struct port *port);
/* Read all that the VM has sent. */
void port_read_out(struct net *net, struct port *port);
/* Number of the first frame of port->queue that the VM has not wholly read. */
size_t port_first_unread(const struct port *port);
/* N9: frame number *ret_i has been read and is in QEMU, not in the guest. */
bool port_keeps_one(const struct port *port, size_t first_unread, size_t *ret_i);
/* N9: that frame, which QEMU throws away. */
void port_write_again(struct net *net, struct port *port, size_t i);
void port_gate(struct net *net, struct request *request);
void port_gate_stuck(struct net *net, struct request *request);
void port_open_gate(struct net *net, struct port *port);
void port_open_gates(struct net *net, struct request *request);
/* Drop what is not yet in the socket, from number `from` of the queue on. */
void port_drop_unsent(struct net *net, struct port *port, size_t from);
/* Offer the held frames again, after the epoch has changed. */
void port_offer_held(struct net *net, struct port *port);
/* Reading on or off, by net->state. */
void port_arm(struct net *net, struct port *port);
void port_rollback(struct net *net, struct port *port);
void port_off(struct net *net, struct request *request);
/* Count a frame that a full queue has no room for. */
static inline void drop_full(struct net *net) { net->stats.dropped++, net->stats.dropped_full++; }

/* ---- record.c -------------------------------------------------------------------------------------------------- */

void record_cut(struct net *net, struct request *request);
void record_marker(struct net *net, struct request *request);
void record_take(struct net *net, struct request *request);
void record_discard(struct net *net, struct request *request);
void record_reinject(struct net *net, struct request *request);
/* The record takes a frame that could as well be dropped. */
bool record_has_room(const struct net *net, const struct port *port, const struct frame *frame);
/* A frame older than the port's epoch now is too late: the record it belongs to is complete already (N6). */
bool record_is_late(const struct net *net, const struct port *port);
/* Add a frame that has been delivered across the cut (borrows the reference). */
void record_add(struct net *net, struct port *port, struct frame *frame);
/* MARKER(r) came from a host; false: it breaks N5. */
bool record_marker_in(struct net *net, struct host_id host, struct epoch_id r);
void record_drop(struct net *net, struct vm *vm);

/* ---- tunnel-message.c ------------------------------------------------------------------------------------------ */

struct tunnel_message {
	enum message_type type;
	struct host_id host;                    /* TUNNEL_HELLO */
	struct generation generation;
	struct epoch_id colour;                 /* FRAME; MARKER: r */
	uint32_t network, size;                 /* FRAME */
	const uint8_t *data;                    /* FRAME: size bytes, in the caller's buffer */
};

enum tunnel_parsed { TUNNEL_WHOLE, TUNNEL_PART, TUNNEL_BAD };
/* The message that n bytes begin with, and its bytes. PART: not all of it is there; BAD: refuse the peer. */
enum tunnel_parsed tunnel_parse(const uint8_t *in, size_t n, struct tunnel_message *ret_message, size_t *ret_bytes);
void tunnel_put_hello(uint8_t out[static TUNNEL_HELLO_BYTES], struct host_id host, struct generation generation);
void tunnel_put_marker(uint8_t out[static TUNNEL_MARKER_BYTES], struct generation generation, struct epoch_id r);
/* What goes before the frame's bytes. */
void tunnel_put_frame_head(uint8_t head[static TUNNEL_HEAD_BYTES], const struct frame *f);

/* ---- tunnel.c -------------------------------------------------------------------------------------------------- */

gboolean tunnel_listen(struct net *net, const char *address, uint16_t *inout_port, GError **error);
void tunnel_add_host(struct net *net, struct request *request);
void tunnel_forget_host(struct net *net, struct request *request);
void tunnel_forget(struct net *net, struct host_id host);
void tunnel_close_all(struct net *net);
/* Put a frame behind the others (borrows the reference). */
void tunnel_queue(struct net *net, struct host_id host, struct frame *frame);
void tunnel_queue_marker(struct net *net, struct host_id host, struct epoch_id r);
void tunnel_flush(struct net *net, struct tunnel *tunnel);
/* Take the whole messages out of tunnel->rx; returns NULL, or why the connection must go. */
const char *tunnel_take(struct net *net, struct tunnel *tunnel);
/* Give up the connection because of what came in by it. */
void tunnel_refuse(struct net *net, struct host_id host, const char *why);
/* The generation has changed: drop what was queued for the last one. */
void tunnel_rollback(struct net *net, struct tunnel *tunnel);
/* Deliver what came for the generation that runs now. */
void tunnel_run_ahead(struct net *net);
/* Do what is due; sets net->next_timer. */
void tunnel_timers(struct net *net, nsec_t now);

/* ---- uplink.c -------------------------------------------------------------------------------------------------- */

struct uplink *uplink_open(struct net *net, uint32_t network, const char *name, bool commit, GError **error);
/* The same behind a descriptor that takes and gives a frame with each write() and read(); it becomes the uplink's. */
struct uplink *uplink_new(struct net *net, uint32_t network, int fd, bool commit);
void uplink_close(struct net *net, struct uplink *uplink);
/* Out (borrows the reference). */
void uplink_send(struct net *net, struct uplink *uplink, struct frame *frame);
void uplink_release_request(struct net *net, struct request *request);
/* U4: remember a frame that came in. */
void uplink_keep(struct net *net, struct uplink *up, struct frame *frame);
/* They go with the switch's states. */
void uplink_freeze(struct uplink *uplink);
void uplink_rollback(struct uplink *uplink, struct epoch_id c);
void uplink_run(struct net *net, struct uplink *uplink);
void uplink_announce(struct net *net, struct request *request);
void uplink_count(const struct uplink *uplink, struct net_stats *stats);

#endif
