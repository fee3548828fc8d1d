/* sim.h - the simulator: whole clusters in virtual time around the real core (src/core), checked against the promises P1-P7.
 *
 *   faults.c ──crash, cut, heal, refuse, ...──►┐
 *   ring.c   group: total order, membership ──►│ host.c: the agent's part ──► core/epoch.c, core/placement.c   (the real objects)
 *   link.c   tunnels, streams: FIFO, delays ──►│    guest.c: VMs, ports, uplinks ──► core/cut.c, core/gate.c
 *                                              │    copies.c: streams, images ──► core/copy.c
 *                                              └──► check.c: what must be true
 *
 * One seed is one run, exactly repeatable: the only source of chance is world.random, the only clock world.now. All that a run allocates comes from
 * one arena that is reset between runs. Nothing here is part of the product. */
#ifndef VCFT_SIM_H
#define VCFT_SIM_H

#include "base/clock.h"
#include "core/copy.h"
#include "core/cut.h"
#include "core/epoch.h"
#include "core/gate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#define HOSTS 5u
#define VMS 4u
#define CAPTURES 256u
#define USEC NSEC_PER_USEC
#define MSEC NSEC_PER_MSEC

struct world;
struct host;

struct list { void **at; uint32_t count, room; };

/* A frame from one VM to another (to < VMS) or to the outside (to == VMS). A sender's frames to one receiver are a chain: what it has sent is known by the
 * newest one. Two timelines never share a frame that was sent after they parted. */
struct frame {
	struct frame *previous;
	uint32_t number;
	uint8_t from, to;
	bool released;
};

/* A frame from the outside to a VM, numbered for each VM; and what a VM has heard, the newest first. */
struct incoming { uint32_t number; uint8_t to; bool split; };   /* split: it came while the VMs of the host were in different epochs (U4) */
struct heard { const struct incoming *what; const struct heard *previous; };

/* All that a VM is: what it has sent, received and heard. */
struct guest_state { struct frame *sent[VMS + 1], *received[VMS]; const struct heard *heard; };

/* A checkpoint of a VM, as captured. */
struct snapshot {
	struct guest_state state;
	struct generation generation;
	struct epoch_id epoch;
	struct frame **record;
	uint32_t record_count;
	host_mask complete;                  /* backups that hold all of it */
};

/* What a VM's own host keeps of it. */
struct image { const struct snapshot *copy; struct epoch_id epoch, complete; bool there; };

/* What the pages of a backup's image really are; what is said of them is decided by core/copy.c. */
struct content { const struct snapshot *at; bool whole, garbage; };

/* A VM's host is connected with a backup, as TCP is: what one end has closed the other may not know. */
struct connection {
	struct host *from, *to;
	uint32_t from_life, to_life, vm;
	struct generation generation;
	uint64_t number;                     /* in the order in which they were made */
	uint32_t left;                       /* epochs until the backup has all pages, as of the last committed one; 0: it has */
	bool fresh, opened, ended;           /* ended: the backup has closed it */
	struct list parts;                   /* struct part: sent, not yet read by the backup */
	uint32_t arrived;                    /* of them */
	nsec_t last, last_answer;
};

/* One epoch of a VM on its way to a backup. */
struct stream {
	struct connection *by;
	const struct snapshot *what, *base_content;
	struct epoch_id epoch, base;
	bool fills, torn;
};
struct part { struct stream *of; bool end; };

/* What is to be done with a copy (K1). */
struct post { bool commit, backup; struct epoch_id epoch; };

/* A frame with what the tunnel adds. */
struct tagged { struct frame *frame; struct generation generation; struct epoch_id colour; };

struct sim_vm {
	bool here, running;                  /* placed on this host; its guest runs */
	uint32_t life;
	struct guest_state state;
	struct epoch_id port;                /* the epoch that its port is in */
	struct list held;                    /* struct tagged: newer colours */
	struct list record;                  /* struct frame: of checkpoint port - 1 */
	nsec_t last_cut;
	struct image shadow;
	struct snapshot *cut;                    /* captured, not yet applied or discarded */
	bool recorded;                       /* its record is complete */
	host_mask backups, acked;
	host_mask complete_at;               /* backups that hold all of it as of the shadow */
	struct connection *to[HOSTS + 1];
	struct list owed;                    /* struct incoming: came since the shadow, while the VM was here */
	/* as a backup of it */
	struct copy copy;
	struct content image, stage;
	const struct snapshot *stage_base;   /* what the stage is relative to */
	struct list posts;                   /* struct post */
	struct connection *waiting;          /* K2 */
	const struct connection *newest;     /* that was let in */
};

struct out_frame { struct frame *frame; struct epoch_id epoch; };

struct item;   /* of an inbox: ring.c */

struct host {
	struct world *world;
	struct host_id id;
	struct epoch *core;
	bool up;
	uint32_t life;                       /* grows with every start and end: what was meant for an earlier life is void */
	struct generation remembered, seen;

	/* group */
	struct ring *ring;
	uint32_t position;                   /* messages of the ring that corosync has handed over */
	struct list outbox;                  /* struct letter */
	struct list inbox;                   /* struct item */
	bool ordering, reading;
	host_mask view, told;
	bool told_quorate;
	nsec_t told_at;
	nsec_t slow_until;                   /* the loop is busy; threads go on */
	nsec_t stopped_until;                /* nothing of the agent goes on; corosync does, and the kernel */

	/* agent */
	bool configured, preparing;
	struct generation preparing_for;
	struct generation generation;
	struct copy_host copies;
	bool running, frozen;
	struct epoch_action todo[EPOCH_ACTIONS_MAX];   /* of the last step */
	size_t todo_count, done;
	nsec_t tick_at;
	uint64_t report;
	struct sim_vm vm[VMS];
	struct message_placement placement[VMS];
	struct epoch_id capture;             /* the checkpoint under way */
	bool failed, marked, recorded;
	uint32_t to_cut;
	host_mask others;
	struct epoch_id marker[HOSTS + 1];   /* from each host, in this generation */
	struct list early;                   /* struct tagged: frames of a generation that has not run yet */
	struct gate *gate;
	struct list out;                     /* struct out_frame: what the gate has taken and not let go: the dumb oracle */
	nsec_t uplink_full_until;
	nsec_t full_until, full_for;         /* there is no room for images and stages of backups; full_for: so for this time from the middle of the next epoch */
};

struct link {
	nsec_t last;
	uint32_t connection;
	bool blocked;
	struct list stalled;
	struct generation broken;            /* a connection broke in this generation: nothing of it passes any more */
};

/* What each run may do. */
struct plan {
	unsigned hosts, vms, backups, faults;
	bool hold, deaf_run;
	bool storm;                          /* all the time something */
	bool aimed;                          /* at a commit, then at the recovery, then at the next */
	bool shuttle;                        /* a commit is torn between two sides; one host goes from one to the other */
	bool tight;                          /* gates have little room */
	unsigned deaf,                       /* worse than any group: a HELLO or STATE is lost at one host, right behind a change of members */
	         refuse, lose_ack, die_at_ack, torn, fail_capture, fail_place, die, flicker, slow;   /* in 1/1000 of occasions */
	nsec_t interval, end, quiet;
};

/* A generation that somebody was placed for. */
struct generation_check {
	struct generation generation;
	host_mask participants;
	struct epoch_id epoch;
	bool resumed;
	const struct snapshot *placed[VMS];
	bool there[VMS];
	struct generation_check *next;
};

/* The newest epoch that was committed anywhere. */
struct known {
	struct generation generation;
	struct epoch_id epoch;
	const struct snapshot *copy[VMS];
	host_mask by;                        /* hosts that know it, and have known it since without a break */
	host_mask gone;                      /* hosts that have lost what they held of it, or have been rolled back behind it */
	unsigned images;                     /* that there were of the VM that had the fewest, when the first one knew it */
};

struct trigger {                             /* a fault that waits for an action of the protocol */
	bool armed;
	enum epoch_action_type action;
	enum message_type message;
	uint32_t count;
	bool before;
	uint8_t what;
};

/* How often each of these happened. */
struct met {
	uint64_t stopped, held, split,           /* hosts; what waited for them; steps, between two of their actions */
	         ended,                          /* hosts, by their watchdog */
	         mute, deaf,                     /* hosts cut off in one direction */
	         one_way,                        /* messages, frames, parts of streams that came where nothing came back */
	         full, midway,                   /* epochs that a backup without room refused, at their begin and when they had come in half */
	         late,                           /* acknowledgements that nobody waited for any more */
	         behind;                         /* recoveries, counted by each host, behind what others knew as committed */
};

struct event { nsec_t at; uint64_t order; struct host *of; void (*fire)(struct world *, void *); void *argument; };   /* of: a host, or nobody */

struct world {
	uint64_t seed, random;
	nsec_t now;
	bool trace, quiet;
	struct plan plan;
	struct event *heap;
	uint32_t heap_count, heap_room;
	uint64_t event_order, events;
	struct host host[HOSTS + 1];
	struct link link[HOSTS + 1][HOSTS + 1];
	uint8_t side[HOSTS + 1];             /* of the partition that the host is on */
	uint32_t mute;                       /* a cut off host that hears the others still; 0: none */
	uint32_t deaf;                       /* a cut off host that the others hear still; 0: none */
	struct epoch_config config;
	struct trigger trigger[3];
	struct host *shuttle;
	uint32_t rings;
	uint64_t connections;
	uint32_t incoming[VMS];              /* frames from outside to each VM */

	/* check.c */
	struct frame *released[VMS];
	struct generation_check *generations;
	struct known known;
	host_mask losses;                    /* since then, or since a recovery behind it */
	unsigned images;                     /* that there were then of the VM that had the fewest */
	bool excused;                        /* more were */
	struct { struct generation generation; struct epoch_id epoch; const struct snapshot *copy[VMS]; host_mask complete[VMS]; bool checked, protected; }
		captures[CAPTURES];
	struct { unsigned commits, aborts, recoveries, releases, crashes, cuts, lost, troubles, frames, forgets; } count;
	struct met met;
	char violation[240];
	jmp_buf stop;
};

/* sim.c */
void *sim_alloc(size_t n);                                       /* zeroed; until the end of the run */
void sim_after(struct world *w, nsec_t delay, void (*fire)(struct world *, void *), void *argument);
void sim_at(struct host *h, nsec_t delay, void (*fire)(struct world *, void *), void *argument);   /* waits while the host is stopped */
uint64_t sim_random(struct world *w, uint64_t below);
nsec_t sim_between(struct world *w, nsec_t least, nsec_t most);
bool sim_chance(struct world *w, unsigned thousandth);
void list_add(struct list *l, void *p);
void *list_take(struct list *l);                                 /* the first; NULL: empty */
void sim_trace(struct world *w, const struct host *h, const char *format, ...) __attribute__((format(printf, 3, 4)));
_Noreturn void sim_violation(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
extern bool sim_tracing;
#define TRACE(w, h, ...) do { if (sim_tracing) sim_trace(w, h, __VA_ARGS__); } while (0)

/* What was meant for a host, and void if it has died since. */
struct note { struct host *host; uint32_t life; uint32_t vm; uint64_t n, m; void *p; };
struct note *note_new(struct host *h);
static inline bool is_stopped(const struct host *h) { return h->world->now < h->stopped_until; }
static inline bool note_is_void(const struct note *n) { return !n->host->up || n->host->life != n->life; }

/* ring.c */
void ring_start(struct world *w);
void ring_mcast(struct host *h, const struct message *m);
void ring_connectivity_changed(struct world *w);
void ring_host_gone(struct host *h);

/* host.c */
void host_start(struct host *h);
void host_crash(struct host *h);
void host_step(struct host *h, const struct epoch_event *event);
void host_deliver(struct host *h, struct host_id from, const struct message *m);
void host_all_cut(struct host *h, struct epoch_id r);
void host_check_record(struct host *h);
void host_trouble(struct host *h, uint32_t vm, uint8_t reason);
struct epoch_view host_view(const struct host *h);
void host_up(struct host *h);

/* copies.c: images, stages, streams */
void copies_capture(struct host *h, uint32_t vm);
void copies_send(struct host *h);
void copies_commit(struct host *h, struct epoch_id r);
void copies_discard(struct host *h, struct epoch_id r);
void copies_recover(struct host *h, struct epoch_id c, const struct message_placement *placement);
void copies_forget(struct host *h);
void copies_generation(struct host *h, struct generation g);
uint32_t copies_holdings(struct host *h, struct message_holding *out);

/* guest.c: VMs, ports, uplinks */
void guest_run(struct host *h, uint32_t vm);
void guest_receive(struct host *h, const struct tagged *t);
void guest_cut(struct host *h, uint32_t vm, struct epoch_id r);
void guest_release(struct host *h, struct epoch_id r);
void uplink_open(struct host *h);
void uplink_close(struct host *h);
void uplink_rollback(struct host *h, struct epoch_id c);
void uplink_run(struct host *h);
void uplink_flush(struct host *h);
void uplink_outside(struct world *w);                            /* the outside talks, from now on */

/* link.c */
bool link_reaches(const struct world *w, struct host_id from, struct host_id to);
void link_passed(struct world *w, struct host_id from, struct host_id to);   /* something did: counted, if it was in one direction */
bool link_is_open(const struct world *w, struct host_id from, struct host_id to);
void link_send(struct host *from, struct host_id to, struct frame *f, struct generation g, struct epoch_id colour);
void link_marker(struct host *from, struct host_id to, struct generation g, struct epoch_id r);
void link_reset(struct world *w, uint32_t a, uint32_t b);
void link_unblock(struct world *w, uint32_t a, uint32_t b);
void link_host_gone(struct world *w, uint32_t h);

/* faults.c */
void faults_plan(struct world *w);
void faults_fill(struct host *h, nsec_t time);
void faults_on_action(struct host *h, const struct epoch_action *act, bool before);
void faults_heal(struct world *w);

/* check.c */
void check_captured(struct host *h, uint32_t vm, const struct snapshot *copy);
void check_step(struct host *h, const struct epoch_event *event, const struct epoch_action *out, size_t n);
void check_known(struct host *h, struct epoch_id r, host_mask participants);
void check_commit(struct host *h, struct epoch_id r);
void check_rollback(struct host *h, const struct epoch_action *act);
void check_stored(struct host *h, struct epoch_id r, uint32_t vm, host_mask complete);
void check_placed(struct host *h, const struct epoch_action *act, uint32_t vm, const struct snapshot *copy);
void check_resume(struct host *h, const struct epoch_action *act);
void check_release_epoch(struct host *h, struct epoch_id r);
void check_release(struct host *h, struct frame *f);
void check_hear(struct host *h, uint32_t vm, const struct incoming *f);
void check_heard(struct host *h, uint32_t vm);
void check_receive(struct host *h, uint32_t vm, const struct frame *f);
void check_loss(struct host *h, const char *why);
void check_forgot(struct host *h, const char *why);
void check_end(struct world *w);

#endif
