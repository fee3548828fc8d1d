/* agent-private.h - what agent.c, checkpoint.c and recovery.c share. */
#ifndef VCFT_AGENT_AGENT_PRIVATE_H
#define VCFT_AGENT_AGENT_PRIVATE_H

#include "agent/agent.h"

#define LOST_SETTLE_MS 2000     /* a cluster that is lost for so long is said to be */

enum trouble_reason { TROUBLE_DIED = 1, TROUBLE_PLACE = 2, TROUBLE_RUN = 3, TROUBLE_TUNNEL = 4, TROUBLE_ROOM = 5 };

/* Feed one event to the core and carry out its actions. Never from within an action. */
void agent_step(struct agent *a, const struct epoch_event *event);
/* Tell the group that vm (VCFT_VM_MAX: no one VM) needs a recovery in place. */
void agent_trouble(struct agent *a, struct vm_id vm, enum trouble_reason reason, const char *what);
bool agent_has(const struct agent *a, uint32_t vm);
const char *agent_vm_name(const struct agent *a, struct vm_id vm);
void agent_mcast(struct agent *a, const struct message *m);
/* Kill the VMs, drop all images and the configuration. */
void agent_forget(struct agent *a);

/* checkpoint.c: one checkpoint, from BEGIN to the release. */
void checkpoint_captured(struct vm_id vm, struct epoch_id r, const GError *error, void *user);
void checkpoint_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed,
                       const struct machine_stats *stats, void *user);
void checkpoint_record_complete(struct epoch_id r, void *user);   /* the switch's thread */
void checkpoint_begin(struct agent *a, const struct epoch_action *act);
void checkpoint_switch_runs(struct agent *a);   /* the checkpoint that has waited for it begins */
void checkpoint_commit(struct agent *a, const struct epoch_action *act);
void checkpoint_release(struct agent *a, const struct epoch_action *act);
void checkpoint_discard(struct agent *a, const struct epoch_action *act);

/* recovery.c: from the loss to running again. */
void recovery_held(struct vm_id vm, uint64_t serial, const struct message_holding *holding, void *user);
void recovery_placed(struct vm_id vm, struct generation g, const GError *error, void *user);
void recovery_ran(struct vm_id vm, struct generation g, const GError *error, void *user);
void recovery_freeze(struct agent *a, const struct epoch_action *act);
void recovery_report(struct agent *a, const struct epoch_action *act);
void recovery_place(struct agent *a, const struct epoch_action *act);
void recovery_run(struct agent *a, const struct epoch_action *act);
void recovery_lost(struct agent *a, const struct epoch_action *act);

extern const struct machine_notes agent_machine_notes;

#endif
