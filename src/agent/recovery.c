/* recovery.c - from the loss of a host or a VM to running again, on this host.
 *
 *   FREEZE ──► REPORT ──► machines say what they hold ──► (STATE .. RECOVER) ──► PLACE ──all──► READY .. RESUME ──► RUN ──all──► finished
 *
 * The switch is frozen before the VMs: nothing of the ended generation gets out. The switch and the sink know the new generation before
 * any VM of it exists. The frames in flight of checkpoint c are delivered to each VM before any new frame is. */
#include "agent/agent-private.h"

#include "agent/post.h"

#include <errno.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <string.h>

#define PLACE_FAILURES_MAX 5u   /* then this host says so and stops trying: it leaves (fail-stop), another one may manage */
#define START_FAILURES_MAX 2u   /* a start that has failed here, then on all others, and here again, is given up: nothing is lost by that */
#define ROOM_AGAIN_MS 1000      /* a recovery that finds no room waits: leaving would take the image along */

/* ---- freeze and report ---- */

void recovery_freeze(struct agent *a, const struct epoch_action *act)
{
	(void)act;
	net_freeze(a->net);
	a->switch_runs = false;
	a->checkpoint.failed = true;
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i))
			machine_pause(a->machines[i]);
	if (!a->detected)
		a->detected = clock_now();
	if (a->ran)
		events_say(a->events, "recovery-started", json_pack("{s:I}", "generation", (json_int_t)a->generation.n));
}

static void one_less_held(struct agent *a)
{
	if (a->waiting_held == 0 || --a->waiting_held > 0)
		return;
	for (uint32_t i = 0; i < VCFT_VM_MAX && a->kept_count < VCFT_VM_MAX; i++)
		if (agent_has(a, i) && a->held[i].live)
			a->kept[a->kept_count++] = a->held[i];
	if (generation_cmp(a->generation, a->preparing_for) < 0)   /* a newcomer: before any host can know that it may send something here */
		sink_generation(a->sink, a->preparing_for);
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_HOLDINGS, .report = a->report_serial, .holdings = a->kept, .count = a->kept_count });
}

void recovery_held(struct vm_id vm, uint64_t serial, const struct message_holding *holding, void *user)
{
	struct agent *a = user;
	if (serial != a->report_serial)
		return;
	a->held[vm.n] = *holding;
	one_less_held(a);
}

struct kept_note { struct agent *agent; uint64_t serial; struct message_holding kept[VCFT_VM_MAX]; uint32_t count; };

static void kept_ask(void *data)
{
	struct kept_note *note = data;
	note->count = sink_holdings(note->agent->sink, note->kept);
}

static void kept_tell(void *data)
{
	struct kept_note *note = data;
	struct agent *a = note->agent;
	if (note->serial != a->report_serial)
		return;
	memcpy(a->kept, note->kept, sizeof a->kept);
	a->kept_count = note->count;
	one_less_held(a);
}

/* The answer comes when all machines and the sink have answered: the loop does not wait for them. */
void recovery_report(struct agent *a, const struct epoch_action *act)
{
	struct kept_note note = { .agent = a, .serial = act->report };
	memset(a->held, 0, sizeof a->held);
	a->report_serial = act->report;
	a->waiting_held = 1;
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i)) {
			a->waiting_held++;
			machine_hold(a->machines[i], act->report);
		}
	sink_tell(a->sink);
	post_queue_add(a->queue, kept_ask, kept_tell, g_memdup2(&note, sizeof note), g_free);
}

/* ---- place ---- */

static void nics_of(const struct config_vm *config, struct net_nic_spec *out)
{
	for (unsigned i = 0; i < config->nic_count; i++) {
		out[i].network = config->nics[i].network;
		memcpy(out[i].mac, config->nics[i].mac, 6);
	}
}

static gboolean ports_add(struct agent *a, struct vm_id vm, GError **error)
{
	const struct config_vm *config = &a->cluster->vms[vm.n];
	struct net_nic_spec nics[VCFT_NIC_MAX];
	char *paths[VCFT_NIC_MAX];
	g_autofree char *dir = g_build_filename(a->config->run_dir, config->name, NULL);
	struct identity who = config_agent_identity(a->config, vm);
	if (!identity_folder_own(&who, dir, error))
		return FALSE;
	nics_of(config, nics);
	for (unsigned i = 0; i < config->nic_count; i++)
		paths[i] = machine_nic_path(a->config, config, i);
	gboolean ok = net_add_vm(a->net, vm, nics, config->nic_count, (const char *const *)paths, error);
	for (unsigned i = 0; i < config->nic_count; i++)
		g_free(paths[i]);
	return ok;
}

static bool machine_make(struct agent *a, struct vm_id vm, GError **error)
{
	if (a->machines[vm.n])
		return true;
	if (!a->bases[vm.n]) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "an image of %s cannot be used on this host", agent_vm_name(a, vm));
		return false;
	}
	if (!ports_add(a, vm, error))
		return false;
	struct machine_options options = {
		.id = vm, .self = a->self, .agent = a->config, .config = &a->cluster->vms[vm.n], .cluster = a->cluster->name,
		.bases = a->bases[vm.n], .net = a->net, .credentials = a->credentials, .verify = a->cluster->verify, .hot_pages = a->cluster->hot_pages,
	};
	a->machines[vm.n] = machine_new(&options, &agent_machine_notes, a);
	return true;
}

/* A VM that runs on another host from now on. */
static void placed_elsewhere(struct agent *a, struct vm_id vm, struct host_id host)
{
	struct net_nic_spec nics[VCFT_NIC_MAX];
	if (a->machines[vm.n]) {
		net_remove_vm(a->net, vm);
		machine_free(g_steal_pointer(&a->machines[vm.n]));
	}
	nics_of(&a->cluster->vms[vm.n], nics);
	net_place(a->net, vm, nics, a->cluster->vms[vm.n].nic_count, host);
}

struct failed_note { struct agent *agent; struct vm_id vm; struct generation g; bool room; char *why; };

static gboolean failed_tell_later(gpointer data)
{
	struct failed_note *n = data;
	if (generation_cmp(n->g, n->agent->generation) == 0)
		agent_trouble(n->agent, n->vm, n->room ? TROUBLE_ROOM : TROUBLE_PLACE, n->why);
	return G_SOURCE_REMOVE;
}

static void failed_drop(void *data)
{
	g_free(((struct failed_note *)data)->why);
	g_free(data);
}

static void place_failed(struct failed_note *n)
{
	struct agent *a = n->agent;
	if (generation_cmp(a->place_failed_in, n->g) != 0)
		a->place_failures++;
	a->place_failed_in = n->g;
	if (n->room)
		shortage_note(a, SHORT_ROOM, n->why);
	if (a->placed_at.n == 0 && a->place_failures >= START_FAILURES_MAX) {
		events_say(a->events, "start-failed", json_pack("{s:s, s:s}", "vm", agent_vm_name(a, n->vm), "error", n->why));
		agent_trouble(a, n->vm, n->room ? TROUBLE_ROOM : TROUBLE_PLACE, n->why);
		agent_down(a);
	} else if (n->room && a->placed_at.n && a->place_failures > 1) {
		struct failed_note later = { a, n->vm, n->g, n->room, g_strdup(n->why) };
		g_timeout_add_full(G_PRIORITY_DEFAULT, ROOM_AGAIN_MS, failed_tell_later, g_memdup2(&later, sizeof later), failed_drop);
	} else if (!n->room && a->place_failures >= PLACE_FAILURES_MAX) {
		g_critical("%s cannot be started on this host after %u attempts: %s", agent_vm_name(a, n->vm), a->place_failures, n->why);
		agent_leave(a);
	} else {
		failed_tell_later(n);
	}
}

/* What has no room now may have it later. */
static bool wants_room(const GError *error)
{
	return g_error_matches(error, VMM_ERROR, VMM_ERROR_SPACE) || strstr(error->message, g_strerror(ENOSPC)) ||
	       strstr(error->message, g_strerror(EMFILE));
}

struct place_note { struct agent *agent; struct generation g; };

static void place_one(struct agent *a, struct vm_id vm)
{
	GError *error = NULL;
	struct epoch_id c = a->placed_at;
	struct image *image = c.n && !agent_has(a, vm.n) ? sink_take(a->sink, vm) : NULL;
	if (c.n == 0)
		sink_drop(a->sink, vm);
	a->waiting_placed++;
	if (machine_make(a, vm, &error)) {
		machine_place(a->machines[vm.n], a->generation, c, image);
		return;
	}
	if (image)
		sink_give(a->sink, vm, image);
	recovery_placed(vm, a->generation, error, a);
	g_error_free(error);
}

/* The count starts at one for the call itself, so that PLACED is never said within the step. */
static void one_less_placed(void *data)
{
	struct place_note *note = data;
	struct agent *a = note->agent;
	if (generation_cmp(note->g, a->generation) == 0 && --a->waiting_placed == 0)
		agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_PLACED, .generation = note->g });
}

static void failed_tell(void *data)
{
	struct failed_note *n = data;
	if (generation_cmp(n->g, n->agent->generation) == 0)
		place_failed(n);
}

void recovery_placed(struct vm_id vm, struct generation g, const GError *error, void *user)
{
	struct agent *a = user;
	if (generation_cmp(g, a->generation) != 0)
		return;
	if (error) {
		struct failed_note note = { a, vm, g, wants_room(error), g_strdup(error->message) };
		post_box_send(a->box, failed_tell, g_memdup2(&note, sizeof note), failed_drop);
		return;
	}
	struct place_note note = { a, g };
	a->placed[vm.n] = clock_now();
	one_less_placed(&note);
}

struct recover_note { struct place_note place; struct epoch_id c; struct host_id hosts[VCFT_VM_MAX]; };

static void recover_images(void *data)
{
	struct recover_note *note = data;
	sink_generation(note->place.agent->sink, note->place.g);
	sink_recover(note->place.agent->sink, note->c);
}

static void place_all(void *data)
{
	struct recover_note *note = data;
	struct agent *a = note->place.agent;
	if (generation_cmp(note->place.g, a->generation) != 0)
		return;
	for (uint32_t i = 0; i < a->cluster->vm_count; i++)
		if (note->hosts[i].n == a->self.n)
			place_one(a, (struct vm_id){ i });
		else
			placed_elsewhere(a, (struct vm_id){ i }, note->hosts[i]);
	one_less_placed(&note->place);
}

/* The images go back to c first, and a stage of c may have to be put into one for that: the loop does not wait for it. */
void recovery_place(struct agent *a, const struct epoch_action *act)
{
	struct recover_note note = { { a, act->generation }, act->epoch, { { 0 } } };
	a->generation = act->generation;
	a->placed_at = act->epoch;
	a->placing = clock_now();
	if (!a->detected)
		a->detected = a->placing;
	net_rollback(a->net, act->generation, act->epoch);
	a->waiting_placed = 1;
	for (uint32_t i = 0; i < a->cluster->vm_count; i++) {
		a->complete_at[i] = act->epoch.n ? act->placement[i].backups : 0;
		note.hosts[i] = act->placement[i].host;
	}
	post_queue_add(a->queue, recover_images, place_all, g_memdup2(&note, sizeof note), g_free);
}

/* ---- run ---- */

/* From the order to go back to c until each VM of this host was there, ms. */
static json_t *placed_json(const struct agent *a)
{
	json_t *vms = json_object();
	for (uint32_t i = 0; i < a->cluster->vm_count; i++)
		if (agent_has(a, i))
			json_object_set_new(vms, a->cluster->vms[i].name, json_pack("{s:f}", "placed_ms", (double)(a->placed[i] - a->placing) / NSEC_PER_MSEC));
	return vms;
}

static void finished(struct agent *a)
{
	net_run(a->net);
	a->switch_runs = true;
	net_announce(a->net);
	a->ran = true;
	a->place_failures = 0;
	g_clear_pointer(&a->trouble, g_free);
	double took = a->detected ? (double)(clock_now() - a->detected) / NSEC_PER_MSEC : 0;
	a->detected = 0;
	events_say(a->events, "recovery-finished",
	           json_pack("{s:f, s:I, s:I, s:o}", "duration_ms", took, "generation", (json_int_t)a->generation.n, "epoch",
	                     (json_int_t)a->placed_at.n, "vms", placed_json(a)));
	checkpoint_switch_runs(a);
}

static void one_less_ran(void *data)
{
	struct place_note *note = data;
	struct agent *a = note->agent;
	if (generation_cmp(note->g, a->generation) == 0 && --a->waiting_ran == 0)
		finished(a);
}

void recovery_ran(struct vm_id vm, struct generation g, const GError *error, void *user)
{
	struct agent *a = user;
	struct place_note note = { a, g };
	if (error && generation_cmp(g, a->generation) == 0)
		agent_trouble(a, vm, TROUBLE_RUN, error->message);
	else if (!error)
		one_less_ran(&note);
}

void recovery_run(struct agent *a, const struct epoch_action *act)
{
	struct place_note note = { a, act->generation };
	a->waiting_ran = 1;
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i)) {
			a->waiting_ran++;
			machine_run(a->machines[i], act->generation);
		}
	post_box_send(a->box, one_less_ran, g_memdup2(&note, sizeof note), g_free);
}

static gboolean lost_still(gpointer data)
{
	struct agent *a = data;
	a->lost_tick = 0;
	if (agent_lost(a)) {
		events_say(a->events, "cluster-lost", json_pack("{s:s, s:s}", "vm", agent_vm_name(a, a->lost_vm), "error", a->trouble));
		g_critical("%s", a->trouble);
	}
	return G_SOURCE_REMOVE;
}

/* A later membership may still have it: hosts that come one after the other must not raise an alarm. Status says it at once. */
void recovery_lost(struct agent *a, const struct epoch_action *act)
{
	const char *vm = act->vm.n < VCFT_VM_MAX ? agent_vm_name(a, act->vm) : "any VM of the newest generation";
	g_free(a->trouble);
	a->trouble = g_strdup_printf("no image of %s is left: nothing is restarted; `virtcft up` starts anew", vm);
	a->lost_vm = act->vm;
	g_clear_handle_id(&a->lost_tick, g_source_remove);
	a->lost_tick = g_timeout_add(LOST_SETTLE_MS, lost_still, a);
}
