/* agent.c - the hub of one host: what the group says goes into the core, what the core decides is carried out; see agent.h.
 *
 * agent_step() feeds one event to the core and carries out its actions in order, before the next event. What actions start comes back
 * later as a note, never within the step: a note that could be ready at once is posted. */
#include "agent/agent-private.h"

#include "agent/post.h"
#include "agent/prepare.h"
#include "agent/promise.h"
#include "agent/watchdog.h"
#include "base/must.h"

#include <gio/gio.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE (10 * NSEC_PER_SEC)    /* a checkpoint that takes longer is given up; the next one may take twice as long */
#define TUNNEL_GRACE_MS 1500            /* a broken tunnel of a live member is trouble after this; a dead host is noticed before */

bool agent_has(const struct agent *a, uint32_t vm) { return vm < VCFT_VM_MAX && a->machines[vm]; }

const char *agent_vm_name(const struct agent *a, struct vm_id vm)
{
	return a->cluster && vm.n < a->cluster->vm_count ? a->cluster->vms[vm.n].name : "?";
}

uint32_t agent_vm_by_name(const struct agent *a, const char *name)
{
	for (uint32_t i = 0; a->cluster && i < a->cluster->vm_count; i++)
		if (!strcmp(a->cluster->vms[i].name, name))
			return i;
	return VCFT_VM_MAX;
}

void agent_trouble(struct agent *a, struct vm_id vm, enum trouble_reason reason, const char *what)
{
	g_message("trouble: %s: %s", vm.n < VCFT_VM_MAX ? agent_vm_name(a, vm) : "network", what);
	g_free(a->trouble);
	a->trouble = g_strdup(what);
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm = vm, .reason = (uint8_t)reason });
}

/* ---- group: out ---- */

void agent_mcast(struct agent *a, const struct message *m)
{
	size_t size = message_size(m);
	g_autofree uint8_t *buffer = g_malloc(size);
	size_t n = message_encode(m, buffer, size);
	MUST("M1", n > 0);
	a->backend->mcast(a->group, buffer, n);
}

static void say_hello(struct agent *a, struct generation g, bool joined)
{
	struct message *m = g_new0(struct message, 1);
	m->type = MESSAGE_HELLO;
	m->generation = g;
	m->hello.state = joined ? HELLO_JOINED : HELLO_EMPTY;
	m->hello.tunnel_port = a->config->tunnel_port;
	m->hello.replication_port = a->config->replication_port;
	g_strlcpy(m->hello.name, a->config->name, sizeof m->hello.name);
	g_strlcpy(m->hello.address, a->config->address, sizeof m->hello.address);
	agent_mcast(a, m);
	g_free(m);
}

static void say_config(struct agent *a, struct generation g, const char *directory, const char *text)
{
	struct message *m = g_new0(struct message, 1);
	m->type = MESSAGE_CONFIG;
	m->generation = g;
	m->config.directory = directory;
	m->config.directory_bytes = (uint32_t)strlen(directory);
	m->config.text = text;
	m->config.text_bytes = (uint32_t)strlen(text);
	agent_mcast(a, m);
	g_free(m);
}

/* ---- forgetting ---- */

static void machines_clear(struct agent *a)
{
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (a->machines[i]) {
			net_remove_vm(a->net, (struct vm_id){ i });
			machine_free(g_steal_pointer(&a->machines[i]));
			watchdog_beat();
		}
}

void agent_forget(struct agent *a)
{
	g_clear_handle_id(&a->lost_tick, g_source_remove);
	net_freeze(a->net);
	machines_clear(a);   /* each takes as long as its RAM takes to be given back: more than a second on a busy host */
	sink_clear(a->sink);
	watchdog_beat();
	net_clear(a->net);
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		g_clear_pointer(&a->bases[i], g_strfreev);
	g_clear_pointer(&a->cluster, config_cluster_free);
	g_clear_pointer(&a->cluster_text, g_free);
	g_clear_pointer(&a->cluster_directory, g_free);
	memset(a->stats, 0, sizeof a->stats);
	memset(a->stats_epoch, 0, sizeof a->stats_epoch);
	a->generation = a->preparing_for = (struct generation){ 0 };
	a->detected = 0;
	a->was_protected = a->ran = a->switch_runs = false;
	a->place_failures = 0;
}

void agent_leave(struct agent *a)
{
	a->left = true;
	g_main_loop_quit(a->loop);
}

/* ---- what outlives the process (E9) ---- */

/* A promise that cannot be kept must not be made: fail-stop. */
static void remember(struct agent *a, const struct epoch_action *act)
{
	MUST("E9", promise_write(a->promise_fd, (struct promise){ act->generation, act->seen }));
}

/* ---- actions ---- */

static void carry_out(struct agent *a, const struct epoch_action *act)
{
	switch (act->type) {
	case EPOCH_ACT_SEND: agent_mcast(a, act->message); break;
	case EPOCH_ACT_HELLO: say_hello(a, act->generation, act->joined); break;
	case EPOCH_ACT_INVITE: say_config(a, act->generation, a->cluster_directory, a->cluster_text); break;
	case EPOCH_ACT_CAPTURE: checkpoint_begin(a, act); break;
	case EPOCH_ACT_COMMIT: checkpoint_commit(a, act); break;
	case EPOCH_ACT_RELEASE: checkpoint_release(a, act); break;
	case EPOCH_ACT_DISCARD: checkpoint_discard(a, act); break;
	case EPOCH_ACT_FREEZE: recovery_freeze(a, act); break;
	case EPOCH_ACT_REPORT: recovery_report(a, act); break;
	case EPOCH_ACT_PLACE: recovery_place(a, act); break;
	case EPOCH_ACT_RUN: recovery_run(a, act); break;
	case EPOCH_ACT_FORGET:
		g_message("the cluster has ended, or goes on without what this host holds: all of it is forgotten");
		agent_forget(a);
		g_message("forgotten");
		events_say(a->events, "cluster-ended", NULL);
		g_clear_pointer(&a->trouble, g_free);   /* behind the event: who waits for a start is told why there is none */
		break;
	case EPOCH_ACT_LOST: recovery_lost(a, act); break;
	case EPOCH_ACT_REMEMBER: remember(a, act); break;
	}
}

static gboolean on_tick(gpointer data)
{
	struct agent *a = data;
	a->tick = 0;
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_TICK });
	return G_SOURCE_REMOVE;
}

static void schedule_tick(struct agent *a)
{
	nsec_t deadline = epoch_deadline(a->core);
	g_clear_handle_id(&a->tick, g_source_remove);
	if (deadline == INT64_MAX)
		return;
	nsec_t wait = MAX(deadline - clock_now(), 0);
	a->tick = g_timeout_add_full(G_PRIORITY_HIGH, (guint)((wait + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC), on_tick, a, NULL);
}

void agent_step(struct agent *a, const struct epoch_event *event)
{
	struct epoch_action actions[EPOCH_ACTIONS_MAX];
	size_t n = epoch_step(a->core, clock_now(), event, actions);
	for (size_t i = 0; i < n; i++)
		carry_out(a, &actions[i]);
	schedule_tick(a);
}

/* ---- a VM's process ended ---- */

static void on_died(struct vm_id vm, const char *what, void *user)
{
	struct agent *a = user;
	g_autofree char *text = g_strdup_printf("%s failed", what);
	events_say(a->events, "vm-exited", json_pack("{s:s, s:s}", "vm", agent_vm_name(a, vm), "process", what));
	agent_trouble(a, vm, TROUBLE_DIED, text);
}

const struct machine_notes agent_machine_notes = {
	checkpoint_captured, checkpoint_stored, recovery_held, recovery_placed, recovery_ran, on_died,
};

/* ---- configuration ---- */

static struct host_id host_by_name(const struct agent *a, const char *name)
{
	for (uint32_t h = 1; name && h <= VCFT_HOST_MAX; h++)
		if (a->peers[h].known && host_in(a->members, (struct host_id){ h }) && !strcmp(a->peers[h].name, name))
			return (struct host_id){ h };
	return (struct host_id){ 0 };
}

static gboolean add_networks(struct agent *a, GError **error)
{
	for (uint32_t i = 0; i < a->cluster->network_count; i++) {
		const struct config_network *n = &a->cluster->networks[i];
		if (!net_add_network(a->net, i, n->uplink, n->commit, error)) {
			g_prefix_error(error, "network %s: ", n->name);
			return FALSE;
		}
	}
	return TRUE;
}

static void configured(struct prepared *p, void *user)
{
	struct agent *a = user;
	struct epoch_config *c = g_new0(struct epoch_config, 1);
	a->preparing = false;
	if (a->cluster) {
		c->vm_count = a->cluster->vm_count;
		c->backups = a->cluster->backups;
		c->interval = a->cluster->interval;
		c->patience = PATIENCE;
		c->hold_when_degraded = a->cluster->hold_when_degraded;
		for (uint32_t v = 0; v < c->vm_count; v++) {
			c->preferred[v] = host_by_name(a, a->cluster->vms[v].host);
			a->bases[v] = g_steal_pointer(&p->bases[v]);
			memcpy(a->disk_blocks[v], p->blocks[v], sizeof p->blocks[v]);
			if (p->why[v])
				g_message("%s cannot run on this host: %s", a->cluster->vms[v].name, p->why[v]);
		}
		agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .generation = a->preparing_for, .config = c });
	}
	g_free(c);
	prepared_free(p);
}

/* Others wait for each member (docs/protocol.md, "Start"): one that cannot take part leaves. A host alone has nobody to leave, and nothing runs yet. */
static void refuse_config(struct agent *a, const char *why)
{
	events_say(a->events, "configuration-refused", json_pack("{s:s}", "error", why));
	if (a->backend == &group_local) {
		g_message("the cluster cannot be started here: %s", why);
		agent_forget(a);
		return;
	}
	g_critical("this host cannot take part: %s", why);
	agent_leave(a);
}

static void on_config(struct agent *a, const struct message *m)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *cache = g_build_filename(a->config->state_dir, "cache", NULL);
	if (a->cluster || a->preparing)
		return;
	a->cluster_text = g_strndup(m->config.text, m->config.text_bytes);
	a->cluster_directory = g_strndup(m->config.directory, m->config.directory_bytes);
	a->cluster = config_cluster_parse(a->cluster_text, m->config.text_bytes, "cluster.yaml", a->cluster_directory, false, &error);
	if (!a->cluster || !add_networks(a, &error)) {
		refuse_config(a, error->message);
		return;
	}
	a->preparing = true;
	a->preparing_for = m->generation;
	prepare_start(a->cluster, cache, a->box, configured, a);
}

/* ---- group: in ---- */

static void on_hello(struct agent *a, struct host_id from, const struct message *m)
{
	struct peer *p = &a->peers[from.n];
	p->known = true;
	g_strlcpy(p->name, m->hello.name, sizeof p->name);
	g_strlcpy(p->address, m->hello.address, sizeof p->address);
	p->tunnel_port = m->hello.tunnel_port;
	p->replication_port = m->hello.replication_port;
	if (from.n == a->self.n)
		return;
	sink_name_host(a->sink, from, p->name);
	net_add_host(a->net, from, p->name, p->address, p->tunnel_port);
}

static void on_stats(struct agent *a, struct host_id from, const struct message *m)
{
	a->peers[from.n].shortages = m->shortages;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		uint32_t vm = m->stats[i].vm.n;
		if (!agent_has(a, vm)) {
			a->stats[vm] = m->stats[i];
			a->stats_epoch[vm] = m->epoch;
		}
	}
}

/* On every host the same words; the details are the one's that said it. */
static void on_trouble(struct agent *a, struct host_id from, const struct message *m)
{
	static const char *const reasons[] = {
		[TROUBLE_DIED] = "a process of it has ended", [TROUBLE_PLACE] = "it could not be started", [TROUBLE_RUN] = "it could not be run",
		[TROUBLE_TUNNEL] = "a tunnel broke", [TROUBLE_ROOM] = "no room for its memory or disk",
	};
	const char *why = m->reason < G_N_ELEMENTS(reasons) && reasons[m->reason] ? reasons[m->reason] : "?";
	const char *vm = m->vm.n < VCFT_VM_MAX ? agent_vm_name(a, m->vm) : "network";
	if (from.n != a->self.n) {
		g_free(a->trouble);
		a->trouble = g_strdup_printf("%s on %s: %s", vm, a->peers[from.n].name, why);
	}
	events_say(a->events, "trouble", json_pack("{s:s, s:s, s:s}", "vm", vm, "host", a->peers[from.n].name, "why", why));
}

static void on_deliver(struct host_id from, const uint8_t *data, size_t n, void *user)
{
	struct agent *a = user;
	g_autofree struct message *m = g_new(struct message, 1);
	if (!message_decode(data, n, m)) {
		g_warning("a message of %zu bytes from host %u is refused: not one of ours", n, from.n);
		return;
	}
	if (m->type == MESSAGE_HELLO)
		on_hello(a, from, m);
	if (m->type == MESSAGE_TROUBLE && a->cluster)
		on_trouble(a, from, m);
	if (m->type == MESSAGE_STATS)
		on_stats(a, from, m);
	else
		agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = from, .message = m });
	if (m->type == MESSAGE_CONFIG)
		on_config(a, m);
}

static void say_lost_hosts(struct agent *a, host_mask gone)
{
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		if (host_in(gone, (struct host_id){ h })) {
			events_say(a->events, "host-lost", json_pack("{s:s}", "host", a->peers[h].known ? a->peers[h].name : "?"));
			net_forget_host(a->net, (struct host_id){ h });
			sink_name_host(a->sink, (struct host_id){ h }, NULL);
			a->peers[h] = (struct peer){ 0 };
		}
}

static void on_membership(host_mask members, bool quorate, void *user)
{
	struct agent *a = user;
	host_mask gone = a->members & ~members;
	a->members = members;
	a->quorate = quorate;
	if (gone)
		a->detected = a->detected ? a->detected : clock_now();
	say_lost_hosts(a, gone);
	agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = members, .quorate = quorate });
}

static void on_group_lost(const char *why, void *user)
{
	struct agent *a = user;
	g_critical("the group is lost: %s", why);
	agent_leave(a);
}

/* ---- tunnels ---- */

struct tunnel_note { struct agent *agent; struct host_id host; bool up; };

static gboolean tunnel_grace_over(gpointer data)
{
	struct tunnel_note *note = data;
	struct agent *a = note->agent;
	struct epoch_view view;
	epoch_view(a->core, &view);
	bool matters = host_in(view.participants, note->host) && host_in(view.members, note->host);
	if (matters && view.state == EPOCH_RUNNING && a->peers[note->host.n].tunnel_lost)
		agent_trouble(a, (struct vm_id){ VCFT_VM_MAX }, TROUBLE_TUNNEL, "a tunnel broke: frames in flight may be lost");
	a->peers[note->host.n].tunnel_lost = 0;
	return G_SOURCE_REMOVE;
}

static void on_tunnel(void *data)
{
	struct tunnel_note *note = data;
	struct peer *p = &note->agent->peers[note->host.n];
	struct epoch_view view;
	epoch_view(note->agent->core, &view);
	p->reachable = note->up;
	if (note->up || view.state != EPOCH_RUNNING || !host_in(view.participants, note->host))
		return;   /* a host that comes back closes the tunnel of its former life: nothing of ours is in it */
	p->tunnel_lost = clock_now();
	g_timeout_add_full(G_PRIORITY_DEFAULT, TUNNEL_GRACE_MS, tunnel_grace_over, g_memdup2(note, sizeof *note), g_free);
}

/* The switch's thread. */
static void tunnel_state(struct host_id host, bool up, void *user)
{
	struct tunnel_note note = { user, host, up };
	post_box_send(note.agent->box, on_tunnel, g_memdup2(&note, sizeof note), g_free);
}

/* The switch's thread; GLib's log may be used from any. */
static void net_note(const char *text, void *user)
{
	(void)user;
	g_message("network: %s", text);
}

/* ---- the sink's callbacks (its threads) ---- */

static void verify_failed(struct vm_id vm, struct epoch_id r, void *user)
{
	struct agent *a = user;
	g_critical("the image of %s at epoch %" PRIu64 " is not what the paused VM was", agent_vm_name(a, vm), r.n);
	MUST("P6", !"verify");
}

static bool image_spec(struct vm_id vm, struct image_spec *ret_spec, void *user)
{
	struct agent *a = user;
	if (!a->cluster || vm.n >= a->cluster->vm_count || !a->bases[vm.n])
		return false;
	machine_image_spec(a->config, &a->cluster->vms[vm.n], a->disk_blocks[vm.n], ret_spec);
	return true;
}

/* ---- verbs ---- */

void agent_down(struct agent *a) { agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_DOWN }); }
void agent_checkpoint(struct agent *a) { agent_step(a, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT }); }

static gboolean hosts_match(const struct agent *a, const struct config_cluster *cluster, GError **error)
{
	for (unsigned i = 0; i < cluster->host_count; i++)
		if (!host_by_name(a, cluster->hosts[i].name).n) {
			g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "host %s is not in the group; is its agent running?",
			            cluster->hosts[i].name);
			return FALSE;
		}
	if (cluster->host_count == 0 ? host_count(a->members) == 1 : host_count(a->members) == cluster->host_count)
		return TRUE;
	g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "the group has %u hosts, cluster.yaml names %u; name them all in `hosts:`",
	            host_count(a->members), cluster->host_count);
	return FALSE;
}

bool agent_lost(const struct agent *a)
{
	struct epoch_view view;
	epoch_view(a->core, &view);
	return view.lost;
}

/* What is lost is ended by a message before the new configuration, so no host is told of that while it still has the old one. */
gboolean agent_up(struct agent *a, const char *file, const char *directory, const char *text, GError **error)
{
	bool lost = agent_lost(a);
	if (a->cluster && !lost) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "cluster %s is up already; `virtcft down` ends it", a->cluster->name);
		return FALSE;
	}
	struct config_cluster *cluster = config_cluster_parse(text, strlen(text), file, directory, true, error);
	gboolean ok = cluster && hosts_match(a, cluster, error);
	if (cluster)
		config_cluster_free(cluster);
	if (ok && lost)
		agent_down(a);
	if (ok)
		say_config(a, (struct generation){ 0 }, directory, text);
	return ok;
}

/* ---- start and end ---- */

static void remove_tree(const char *path)
{
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *child = g_build_filename(path, name, NULL);
		if (g_file_test(child, G_FILE_TEST_IS_DIR) && !g_file_test(child, G_FILE_TEST_IS_SYMLINK))
			remove_tree(child);
		(void)remove(child);
	}
}

/* A VM's folder in ram_dir, of which the names in it are ours; what else is there stays, and so does the folder then. */
static void remove_ram(const char *path)
{
	g_autoptr(GDir) dir = g_file_test(path, G_FILE_TEST_IS_SYMLINK) ? NULL : g_dir_open(path, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *child = g_build_filename(path, name, NULL);
		if (!strcmp(name, "image") || g_str_has_prefix(name, "ram."))
			unlink(child);
	}
	if (dir)
		rmdir(path);
}

/* What a former life left: images in memory and disks of uncommitted epochs are worth nothing without its protocol state. */
static void remove_remains(const struct config_agent *config)
{
	g_autofree char *vms = g_build_filename(config->state_dir, "vms", NULL);
	g_autoptr(GDir) dir = g_dir_open(config->ram_dir, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *child = g_build_filename(config->ram_dir, name, NULL);
		remove_ram(child);
	}
	remove_tree(vms);
}

/* The promise first: it says whether these folders are another agent's that runs, and then nothing may be removed there. */
static gboolean open_folders(struct agent *a, struct promise *ret_promise, GError **error)
{
	const struct config_agent *c = a->config;
	if (!vm_ram_dir_fits(c->ram_dir, error) || !identity_folder_open(c->run_dir, error) || !identity_folder_open(c->state_dir, error))
		return FALSE;
	a->promise_fd = promise_open(c->state_dir, ret_promise, error);
	if (a->promise_fd < 0)
		return FALSE;
	remove_remains(c);
	return identity_folder_open(c->ram_dir, error);
}

static gboolean open_network(struct agent *a, GError **error)
{
	struct net_limits limits = { a->config->held_memory, a->config->queue_memory };
	struct net_callbacks net_callbacks = { checkpoint_record_complete, tunnel_state, net_note };
	struct sink_callbacks sink_callbacks = { verify_failed, image_spec, net_note };
	struct sink_limits sink_limits = { .memory_bytes = a->config->backup_memory };
	const char *address = a->backend == &group_local ? NULL : a->config->address;    /* alone: nobody is to connect */
	a->net = net_new(a->self, address, &a->config->tunnel_port, a->credentials, &limits, &net_callbacks, a, error);
	if (!a->net)
		return FALSE;
	a->sink = sink_new(a->self, address, &a->config->replication_port, a->credentials, &sink_limits, &sink_callbacks, a, error);
	return a->sink != NULL;
}

/* Before anything is listened to: an agent that should use TLS and cannot does not start. */
static gboolean load_credentials(struct agent *a, GError **error)
{
	if (a->backend == &group_local)
		return TRUE;
	if (!a->config->tls) {
		g_warning("tls: off: guest memory, disks and frames go over the network in plain text, and whoever reaches the ports can pose as a host");
		return TRUE;
	}
	a->credentials = tls_credentials_load(a->config->pki_dir, a->config->name, error);
	return a->credentials != NULL;
}

struct agent *agent_new(struct config_agent *config, GMainLoop *loop, GError **error)
{
	static const struct group_callbacks callbacks = { on_deliver, on_membership, on_group_lost };
	struct agent *a = g_new0(struct agent, 1);
	struct promise promise;
	a->config = config;
	a->loop = loop;
	a->promise_fd = -1;
	a->events = events_new();
	a->box = post_box_new();
	a->queue = post_queue_new(a->box);
	a->backend = !strcmp(config->group, "corosync") ? &group_corosync : &group_local;
	if (open_folders(a, &promise, error) && load_credentials(a, error))
		a->group = a->backend->join(&callbacks, a, error);
	if (a->group) {
		a->self = a->backend->self(a->group);
		a->core = epoch_new(a->self);
		epoch_remember(a->core, promise.lived, promise.seen);
	}
	if (!a->group || !open_network(a, error)) {
		agent_free(a);
		return NULL;
	}
	a->shortages = shortages_new(a);
	return a;
}

void agent_free(struct agent *a)
{
	if (a->net && a->sink)
		agent_forget(a);
	g_clear_handle_id(&a->tick, g_source_remove);
	if (a->shortages)
		shortages_free(a->shortages);
	if (a->promise_fd >= 0)
		close(a->promise_fd);
	if (a->group)
		a->backend->leave(a->group);
	post_queue_free(a->queue);
	g_clear_pointer(&a->sink, sink_free);
	g_clear_pointer(&a->net, net_free);
	g_clear_pointer(&a->credentials, tls_credentials_free);
	g_clear_pointer(&a->core, epoch_free);
	events_free(a->events);
	post_box_close(a->box);
	g_free(a->trouble);
	g_free(a);
}
