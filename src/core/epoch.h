/* epoch.h - the protocol of one host: BEGIN .. RELEASE, and recovery (docs/protocol.md).
 *
 * Pure: events and the time go in, actions come out. No clock, socket, thread; memory is taken once, in epoch_new(). The agent and
 * the simulator link the same object. Whoever calls epoch_step() carries out the actions in their order, before the next step.
 *
 *              CONFIGURED / a participant lost / TROUBLE / no quorum
 *   EMPTY ────────────► GATHER ◄──────────────────────────────┐
 *     ▲                   │ leader: STATE from all, quorum     │
 *     │ FORGET            ▼ RECOVER(g, c, placement)           │
 *     ├──────────────── PLACING ── READY from all, RESUME ──► RUNNING: BEGIN(r) → STORED → committed → KNOWN → applied, released
 *     └── RESUME or BEGIN of a generation that this host is no part of, DOWN
 *
 * The rules that it keeps (docs/rules.md has the reasons and the tests):
 *  E0 Whoever calls keeps the bounds: a host id of 1 to VCFT_HOST_MAX; one step never makes more actions or messages than there is room for.
 *  E1 BEGIN(g, r) is acted on only in RUNNING, in generation g, when r = last begun + 1 and the last begun is known by all or aborted.
 *  E2 r is committed at a host when it has delivered STORED(g, r) from every host that BEGIN(g, r) gave VMs to, and no ABORT before.
 *  E3 r is applied (images move) at a host when it has delivered KNOWN(g, r) from every participant of BEGIN(g, r); it is released when,
 *     besides, as many hosts as make a quorum have said that they live in generation g.
 *  E4 In GATHER and PLACING nothing is committed, applied or released. A participant whose STATE is delivered has left its generation, for itself as well.
 *  E5 A recovery goes to c = the newest epoch that any STATE says is committed. If a VM has no image of it: to a newer one, if every VM has a complete
 *     stage of that; or to the one before, if a participant never knew the newest. Epoch numbers go on at c + 1.
 *     Hosts that have acted on other RECOVERs since take part as well if they are needed, and only to the checkpoint at which they have been all the time.
 *  E6 Messages of another generation are dropped. A host that hears RESUME or BEGIN of one that it is no part of forgets all and joins empty.
 *  E7 No VM is placed on a host whose image or complete stage is not exactly at c; if one VM has none, LOST, nothing starts.
 *  E8 Without quorum nothing is placed, begun or resumed.
 *  E9 A generation is resumed only when as many hosts as make a quorum, all its participants among them, have promised not to take part in
 *     one of the same or a lower number. No recovery starts from a generation if a later one may have released. Nobody waits for a READY that
 *     cannot come: who drops a later RECOVER says TROUBLE, whether it is a participant or one of those who make the quorum. */
#ifndef VCFT_CORE_EPOCH_H
#define VCFT_CORE_EPOCH_H

#include "base/clock.h"
#include "base/messages.h"
#include "base/types.h"

struct epoch;

enum epoch_state { EPOCH_EMPTY, EPOCH_GATHER, EPOCH_PLACING, EPOCH_RUNNING };

/* What the cluster's configuration says that matters here. */
struct epoch_config {
	uint32_t vm_count;
	unsigned backups;                         /* B, images wanted beside the VM's own host */
	nsec_t interval;                          /* between two BEGINs */
	nsec_t patience;                          /* the leader ABORTs a checkpoint that is not committed after this, the next one after twice as long, until one is
	                                             committed; 0: never */
	nsec_t settle;                            /* no new backup is filled so soon after a recovery, unless hold: the first commits are what
	                                             the outside waits for; 0: 1 s */
	nsec_t retry;                             /* a backup that failed is tried again after this, then after twice as long, at most 8
	                                             times; 0: 1 s */
	bool hold_when_degraded;                  /* degraded: hold - release only while every VM has its B complete backups, once it
	                                             has had them (commits go on: they fill the backups) */
	struct host_id preferred[VCFT_VM_MAX];    /* {0}: anywhere */
};

enum epoch_event_type {
	EPOCH_EV_TICK,          /* time passed; call at least when epoch_deadline() says */
	EPOCH_EV_MEMBERSHIP,    /* hosts, quorate, needed. A host that leaves and comes back is seen to leave */
	EPOCH_EV_MESSAGE,       /* from, message: delivered by the group, my own too; CONFIG as well, before the agent reads it */
	EPOCH_EV_CONFIGURED,    /* config; generation (that of the CONFIG): 0 a new cluster (`up`), else joined a running one */
	EPOCH_EV_HOLDINGS,      /* holdings, count, report: the answer to the newest EPOCH_ACT_REPORT (answers to older ones: leave out, or give
	                           its number and they are dropped) */
	EPOCH_EV_STORED,        /* epoch, stored, count: all local VMs' checkpoints are on their backups */
	EPOCH_EV_NOT_STORED,    /* epoch, vm, hosts: failed; those backups are not to be used for vm for a while */
	EPOCH_EV_PLACED,        /* generation: all my VMs are in place */
	EPOCH_EV_TROUBLE,       /* vm, reason: one of my VMs died, or could not be placed */
	EPOCH_EV_CHECKPOINT,    /* somebody wants a checkpoint now, not at the end of the interval (leader only; others ignore) */
	EPOCH_EV_DOWN,          /* the user ends the cluster */
};

struct epoch_stored { struct vm_id vm; host_mask complete; };

struct epoch_event {
	enum epoch_event_type type;
	struct generation generation;
	struct epoch_id epoch;
	struct host_id from;
	struct vm_id vm;
	uint8_t reason;
	host_mask hosts;
	bool quorate;                                /* the members that run an agent have the majority of votes */
	uint32_t needed;                             /* how many hosts make a quorum; 0: not known (then E9 counts participants alone) */
	uint64_t report;                             /* 0: of the newest */
	const struct message *message;               /* borrowed for the call, like all below */
	const struct epoch_config *config;
	const struct message_holding *holdings;
	const struct epoch_stored *stored;
	uint32_t count;                              /* of holdings or stored */
};

enum epoch_action_type {
	EPOCH_ACT_SEND,         /* message: multicast it to the group */
	EPOCH_ACT_HELLO,        /* multicast a HELLO with the agent's name and ports, generation and `joined` */
	EPOCH_ACT_INVITE,       /* multicast CONFIG with this generation: a host came that has no configuration */
	EPOCH_ACT_CAPTURE,      /* epoch, placement: checkpoint all local VMs; answer STORED or NOT_STORED */
	EPOCH_ACT_COMMIT,       /* epoch: stages and shadows move to it */
	EPOCH_ACT_RELEASE,      /* epoch: uplinks let go of frames of epochs <= epoch */
	EPOCH_ACT_DISCARD,      /* epoch: aborted; drop stages, its pages go into the next one. Comes with the next BEGIN, not before */
	EPOCH_ACT_FREEZE,       /* stop all local VMs now, release nothing: the generation is over */
	EPOCH_ACT_REPORT,       /* report: tell what this host holds: answer with HOLDINGS; it takes the place of older REPORTs */
	EPOCH_ACT_PLACE,        /* generation, epoch c, placement: roll back, start lost VMs; answer PLACED or TROUBLE */
	EPOCH_ACT_RUN,          /* generation, epoch c: re-inject c's frames in flight, run all local VMs, announce MACs */
	EPOCH_ACT_FORGET,       /* kill local VMs, drop all images and the configuration: this host is empty */
	EPOCH_ACT_LOST,         /* vm: no image of it is left; VCFT_VM_MAX: a newer generation is known of, but none of its images; said to the user */
	EPOCH_ACT_REMEMBER,     /* generation, seen: keep them where they outlive this process, before any action behind this one (E9) */
};

struct epoch_action {
	enum epoch_action_type type;
	struct generation generation;
	struct generation seen;                      /* REMEMBER */
	struct epoch_id epoch;
	struct vm_id vm;
	bool joined;
	host_mask hosts;                             /* participants */
	uint64_t report;
	const struct message *message;               /* valid until the next step */
	const struct message_placement *placement;   /* vm_count entries, valid until the next step */
};

#define EPOCH_ACTIONS_MAX 16

struct epoch *epoch_new(struct host_id self);
void epoch_free(struct epoch *e);

/* What the last EPOCH_ACT_REMEMBER of this host's former process said. To be called, if at all, before the first step. */
void epoch_remember(struct epoch *e, struct generation generation, struct generation seen);

/* One event at a time; returns how many actions were written to out. */
size_t epoch_step(struct epoch *e, nsec_t now, const struct epoch_event *in, struct epoch_action out[static EPOCH_ACTIONS_MAX]);

/* When the next TICK is needed at the latest; INT64_MAX: none. */
nsec_t epoch_deadline(const struct epoch *e);

/* A generation's number is its count and, in the low bits, the id of the leader that started it: two leaders that do not know of each other never use the
 * same one. Users are shown the count. */
#define EPOCH_LEADER_BITS 6u
static inline uint64_t epoch_generation_count(struct generation g) { return g.n >> EPOCH_LEADER_BITS; }

/* What is now, for status. */
struct epoch_view {
	enum epoch_state state;
	struct generation generation;                /* the count, for users */
	struct generation number;                    /* as in messages and actions */
	struct epoch_id begun, committed, released;
	struct host_id leader;
	host_mask members, participants;
	bool quorate, protected_, lost;              /* protected: every VM has B complete backups as of committed */
	uint32_t vm_count;
	const struct message_placement *placement;   /* backups: the complete ones */
};
void epoch_view(const struct epoch *e, struct epoch_view *ret_view);

#endif
