/* agent.h - the wiring of one host: group, core, switch, backups' sink and the machines.
 *
 *   group ──message, membership──► core ──actions──► machines, sink, net, group
 *                                   ▲                     │ notes
 *                                   └─────────────────────┘
 *
 * All of this runs on the loop's thread; what takes time is a machine's worker's, the switch's, or the queue's for the sink. The order in which an
 * action's parts are carried out is the safety argument; it is said at each of them in agent.c. */
#ifndef VCFT_AGENT_AGENT_H
#define VCFT_AGENT_AGENT_H

#include "agent/events.h"
#include "agent/machine.h"
#include "agent/shortage.h"
#include "base/config.h"
#include "core/epoch.h"
#include "group/group.h"
#include "net/net.h"
#include "store/store.h"

struct peer {
	bool known, reachable;                   /* said HELLO; tunnel is up */
	char name[VCFT_NAME_MAX + 1], address[VCFT_NAME_MAX + 1];
	uint16_t tunnel_port, replication_port;
	uint32_t shortages;                      /* as its last STATS said */
	nsec_t tunnel_lost;                      /* when its tunnel broke in this generation; 0: not */
};

/* The checkpoint under way, as this host sees it. */
struct checkpoint {
	struct epoch_id epoch;
	nsec_t begun, captured, recorded, stored_at; /* when this host had got so far: where the time to commit goes */
	unsigned waiting_captured, waiting_stored;
	bool failed, waits;                      /* waits: for the switch, which does not run yet: nothing is captured */
	struct generation generation;
	host_mask others;                        /* other hosts with VMs */
	host_mask backups[VCFT_VM_MAX];
	struct epoch_stored stored[VCFT_VM_MAX];
	unsigned stored_count;
};

struct agent {
	struct config_agent *config;
	struct tls_credentials *credentials;     /* NULL: tls is off, or this host is alone */
	const struct group_backend *backend;
	struct group *group;
	struct host_id self;
	struct epoch *core;
	struct net *net;
	struct sink *sink;
	struct events *events;
	struct shortages *shortages;
	int promise_fd;                          /* what outlives the process (E9) */
	struct post_box *box;
	struct post_queue *queue;                /* what the sink must do before the loop can go on, and may take long */
	GMainLoop *loop;
	guint tick;
	guint lost_tick;                         /* 0: nothing is lost, or it has been said */
	struct vm_id lost_vm;

	host_mask members;
	bool quorate;
	struct peer peers[VCFT_HOST_MAX + 1];

	/* the cluster, once CONFIG has come */
	struct config_cluster *cluster;
	char *cluster_text, *cluster_directory;
	char **bases[VCFT_VM_MAX];               /* raw base of each disk of each VM; NULL: not on this host */
	uint64_t disk_blocks[VCFT_VM_MAX][VCFT_DISK_MAX];
	struct generation preparing_for;         /* the CONFIG whose bases are being made */
	bool preparing;
	struct machine *machines[VCFT_VM_MAX];
	struct message_stats stats[VCFT_VM_MAX]; /* of the last checkpoint; those of other hosts' VMs as their STATS said */
	struct epoch_id stats_epoch[VCFT_VM_MAX];
	nsec_t stats_said;
	host_mask complete_at[VCFT_VM_MAX];      /* backups that hold all of the VM at the last committed checkpoint: they need not be filled */
	struct generation generation;            /* of the last PLACE */
	struct epoch_id placed_at;               /* c of it */
	struct checkpoint checkpoint;
	unsigned waiting_held, waiting_placed, waiting_ran;
	uint64_t report_serial;                  /* of the last REPORT: answers to older ones are dropped */
	struct message_holding held[VCFT_VM_MAX], kept[VCFT_VM_MAX];    /* of the VMs here, by number; of the sink, kept_count of them, then of both */
	uint32_t kept_count;
	nsec_t detected;                         /* when the running recovery was noticed; 0: none */
	nsec_t placing, placed[VCFT_VM_MAX];     /* when it was begun to bring VMs to c; when each of this host's was there */
	bool was_protected, ran, switch_runs;    /* switch_runs: from the end of a recovery to the next freeze */
	unsigned place_failures;                 /* generations of this start or recovery in which a VM could not be placed here */
	struct generation place_failed_in;       /* the last of them */
	nsec_t commit_time;                      /* of the last checkpoint */
	char *trouble;                           /* last reason, for status */
	bool left;                               /* agent_leave() */
};

/* Join the group and serve until the loop ends. NULL with error set if this host cannot. */
struct agent *agent_new(struct config_agent *config, GMainLoop *loop, GError **error);
void agent_free(struct agent *agent);
/* End the loop, for this host cannot go on: the others do without it. */
void agent_leave(struct agent *agent);

/* A VM of the cluster has no image left on these hosts: nothing runs. */
bool agent_lost(const struct agent *agent);
/* `up`: check the file against this group and multicast it; a cluster that is lost is ended before. Returns false with the reason. */
gboolean agent_up(struct agent *agent, const char *file, const char *directory, const char *text, GError **error);
void agent_down(struct agent *agent);
/* Ask for a checkpoint now. */
void agent_checkpoint(struct agent *agent);

/* The VM's number, or VCFT_VM_MAX. */
uint32_t agent_vm_by_name(const struct agent *agent, const char *name);

#endif
