/* corosync.c - the group over corosync: CPG for messages and members, its quorum service for the flag.
 *
 *   group_mcast ──► [queue] ──cpg_mcast_joined──► totem ──► CPG ──deliver──► callbacks
 *                      ▲ try again, by a timer              └──confchg, ring──┐
 *                      └──────────────────────   quorum service ──flag──► quorate.c ──► membership
 *
 * GC1 One agent of a node counts: the one that came first; a second one ends by lost(). Messages of other processes in the group are dropped.
 * GC2 A node id is a host id: 1..VCFT_HOST_MAX, other nodes cannot run an agent.
 * GC3 membership() comes when members or flag have changed, in the order of CPG's events; an agent that ended and came back is first reported as gone.
 * GC4 The flag is quorate.c's. Corosync settings that let two partitions have it are refused at join.
 * GC5 Messages leave in the order of group_mcast(). While corosync forms a ring or its queues are full it says "try again": they wait here.
 * Callbacks only come from the loop. After lost() nothing more comes; the group still has to be left.
 * Thread: the loop's. group_mcast() waits for corosync's answer (tens of µs); a corosync that hangs hangs the agent: the watchdog's case. */
#include "group/group.h"

#include "base/fault.h"
#include "base/must.h"
#include "group/quorate.h"

#include <corosync/cmap.h>
#include <corosync/cpg.h>
#include <corosync/quorum.h>
#include <glib-unix.h>
#include <string.h>
#include <unistd.h>

#define MESSAGE_BYTES_MAX (600u * 1024)
#define RETRY_MS 1u
#define JOIN_TRIES 500           /* times 10 ms: corosync may just be forming a ring */
#define GROUP_NAME "virtcft"

struct group {
	struct group_callbacks callbacks;
	void *user;
	cpg_handle_t cpg;
	quorum_handle_t quorum;
	bool cpg_open, quorum_open;
	unsigned cpg_source, quorum_source, retry_source, lost_source;
	struct host_id self;
	uint32_t agent_pid[VCFT_HOST_MAX + 1];   /* of the agent that counts on each node, 0: none */
	struct quorate quorate;
	host_mask told_members;
	bool told_quorate, told;
	GQueue queue;                            /* GBytes */
	unsigned dispatching;                    /* leave() in a callback: freed when it has returned */
	bool leaving, dead;
	char *why;
};

static GQuark group_error_quark(void) { return g_quark_from_static_string("virtcft-group"); }
#define GROUP_ERROR (group_error_quark())

static gboolean say_lost(void *data);

/* The group is of no use any more: say so from the loop, once. */
static void lose(struct group *g, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void lose(struct group *g, const char *format, ...)
{
	va_list args;
	if (g->dead)
		return;
	va_start(args, format);
	g->why = g_strdup_vprintf(format, args);
	va_end(args);
	g->dead = true;
	g->lost_source = g_idle_add_full(G_PRIORITY_HIGH, say_lost, g, NULL);
}

/* ---- members and flag ---- */

static host_mask members_of(const struct group *g)
{
	host_mask members = 0;
	for (uint32_t n = 1; n <= VCFT_HOST_MAX; n++)
		if (g->agent_pid[n])
			members |= host_bit((struct host_id){ n });
	return members;
}

/* GC3. Nothing is told before CPG has named its ring: the flag would only be corrected at once. */
static void tell(struct group *g)
{
	host_mask members = members_of(g);
	bool quorate = quorate_now(&g->quorate, members);
	if (g->dead || g->leaving || !g->quorate.cpg.known || !host_in(members, g->self))
		return;
	if (g->told && members == g->told_members && quorate == g->told_quorate)
		return;
	g->told = true;
	g->told_members = members;
	g->told_quorate = quorate;
	g->callbacks.membership(members, quorate, g->user);
}

static bool listed(const struct cpg_address *list, size_t count, uint32_t node, uint32_t pid)
{
	for (size_t i = 0; i < count; i++)
		if (list[i].nodeid == node && list[i].pid == pid)
			return true;
	return false;
}

/* GC1: forget agents that are not in the list any more; true: there were some. */
static bool drop_gone(struct group *g, const struct cpg_address *list, size_t count)
{
	bool some = false;
	for (uint32_t n = 1; n <= VCFT_HOST_MAX; n++)
		if (g->agent_pid[n] && !listed(list, count, n, g->agent_pid[n])) {
			g->agent_pid[n] = 0;
			some = true;
		}
	return some;
}

static void add_new(struct group *g, const struct cpg_address *list, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (list[i].nodeid >= 1 && list[i].nodeid <= VCFT_HOST_MAX && !g->agent_pid[list[i].nodeid])
			g->agent_pid[list[i].nodeid] = list[i].pid;
}

static struct group *group_of(cpg_handle_t handle)
{
	void *context = NULL;
	return cpg_context_get(handle, &context) == CS_OK ? context : NULL;
}

static void on_confchg(cpg_handle_t handle, const struct cpg_name *name, const struct cpg_address *members, size_t member_count,
                       const struct cpg_address *left, size_t left_count, const struct cpg_address *joined, size_t joined_count)
{
	struct group *g = group_of(handle);
	(void)name, (void)joined, (void)joined_count;
	for (size_t i = 0; i < left_count; i++)
		if (left[i].reason == CPG_REASON_NODEDOWN)
			quorate_on_node_lost(&g->quorate);
	if (drop_gone(g, members, member_count))
		tell(g);
	add_new(g, members, member_count);
	if (g->agent_pid[g->self.n] != (uint32_t)getpid())
		lose(g, "another agent of this host (process %u) is in the group; expected one", g->agent_pid[g->self.n]);
	tell(g);
}

static void on_ring(cpg_handle_t handle, struct cpg_ring_id ring, uint32_t count, const uint32_t *nodes)
{
	struct group *g = group_of(handle);
	quorate_on_ring(&g->quorate, (struct quorate_ring){ ring.nodeid, ring.seq }, nodes, count);
	tell(g);
}

static void on_vote(quorum_handle_t handle, uint32_t quorate, struct quorum_ring_id ring, uint32_t count, const uint32_t *nodes)
{
	const void *context = NULL;
	if (quorum_context_get(handle, &context) != CS_OK)
		return;
	struct group *g = (struct group *)context;
	quorate_on_vote(&g->quorate, (struct quorate_ring){ ring.nodeid, ring.seq }, quorate != 0, nodes, count);
	tell(g);
}

static void on_deliver(cpg_handle_t handle, const struct cpg_name *name, uint32_t node, uint32_t pid, void *data, size_t n)
{
	struct group *g = group_of(handle);
	(void)name;
	if (node < 1 || node > VCFT_HOST_MAX || g->agent_pid[node] != pid || g->dead || g->leaving)
		return;
	g->callbacks.deliver((struct host_id){ node }, data, n, g->user);
}

/* ---- loop ---- */

static void free_group(struct group *g);

/* Around everything that calls back. False: the group was left meanwhile and is gone. */
static bool dispatch(struct group *g, cs_error_t (*run)(struct group *), const char *what)
{
	g->dispatching++;
	cs_error_t e = run(g);
	g->dispatching--;
	if (g->leaving) {
		free_group(g);
		return false;
	}
	if (e != CS_OK && e != CS_ERR_TRY_AGAIN)
		lose(g, "corosync's %s has ended: %s", what, cs_strerror(e));
	return true;
}

static cs_error_t run_cpg(struct group *g) { return cpg_dispatch(g->cpg, CS_DISPATCH_ALL); }
static cs_error_t run_quorum(struct group *g) { return quorum_dispatch(g->quorum, CS_DISPATCH_ALL); }

/* A source that has returned G_SOURCE_REMOVE must not be removed again: its id is cleared first. */
static gboolean on_cpg_readable(int fd, GIOCondition condition, void *data)
{
	struct group *g = data;
	(void)fd, (void)condition;
	if (!dispatch(g, run_cpg, "CPG"))
		return G_SOURCE_REMOVE;
	if (g->dead)
		g->cpg_source = 0;
	return g->dead ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

static gboolean on_quorum_readable(int fd, GIOCondition condition, void *data)
{
	struct group *g = data;
	(void)fd, (void)condition;
	if (!dispatch(g, run_quorum, "quorum service"))
		return G_SOURCE_REMOVE;
	if (g->dead)
		g->quorum_source = 0;
	return g->dead ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

static cs_error_t run_lost(struct group *g)
{
	g->callbacks.lost(g->why, g->user);
	return CS_OK;
}

static gboolean say_lost(void *data)
{
	struct group *g = data;
	g->lost_source = 0;
	dispatch(g, run_lost, "group");
	return G_SOURCE_REMOVE;
}

/* ---- sending ---- */

static cs_error_t send_one(struct group *g, GBytes *message)
{
	gsize n;
	const void *data = g_bytes_get_data(message, &n);
	struct iovec part = { .iov_base = (void *)data, .iov_len = n };
	return fault(FAULT_GROUP_BUSY) ? CS_ERR_TRY_AGAIN : cpg_mcast_joined(g->cpg, CPG_TYPE_AGREED, &part, 1);
}

static gboolean on_retry(void *data);

/* GC5 */
static void flush(struct group *g)
{
	cs_error_t e = CS_OK;
	while (!g->dead && e == CS_OK && !g_queue_is_empty(&g->queue)) {
		e = send_one(g, g_queue_peek_head(&g->queue));
		if (e == CS_OK)
			g_bytes_unref(g_queue_pop_head(&g->queue));
	}
	if (e == CS_ERR_TRY_AGAIN && !g->retry_source)
		g->retry_source = g_timeout_add(RETRY_MS, on_retry, g);
	else if (e != CS_OK && e != CS_ERR_TRY_AGAIN)
		lose(g, "corosync takes no message: %s", cs_strerror(e));
}

static gboolean on_retry(void *data)
{
	struct group *g = data;
	g->retry_source = 0;
	flush(g);
	return G_SOURCE_REMOVE;
}

static void corosync_mcast(struct group *g, const void *data, size_t n)
{
	MUST("GC5", n <= MESSAGE_BYTES_MAX);
	g_queue_push_tail(&g->queue, g_bytes_new(data, n));
	if (!g->retry_source)
		flush(g);
}

/* ---- join ---- */

static gboolean failed(cs_error_t e, const char *what, GError **error)
{
	if (e == CS_OK)
		return FALSE;
	g_set_error(error, GROUP_ERROR, (int)e, "corosync: %s: %s%s", what, cs_strerror(e),
	            e == CS_ERR_LIBRARY || e == CS_ERR_NOT_EXIST || e == CS_ERR_TRY_AGAIN ? " (does corosync run on this host?)" : "");
	return TRUE;
}

static uint32_t cmap_number(cmap_handle_t map, const char *key, uint32_t otherwise)
{
	uint32_t wide;
	uint8_t narrow;
	if (cmap_get_uint32(map, key, &wide) == CS_OK)
		return wide;
	return cmap_get_uint8(map, key, &narrow) == CS_OK ? narrow : otherwise;
}

static unsigned count_nodes(cmap_handle_t map)
{
	cmap_iter_handle_t iter;
	char key[CMAP_KEYNAME_MAXLEN + 1];
	unsigned nodes = 0;
	if (cmap_iter_init(map, "nodelist.node.", &iter) != CS_OK)
		return 0;
	while (cmap_iter_next(map, iter, key, NULL, NULL) == CS_OK)
		nodes += g_str_has_suffix(key, ".nodeid");
	cmap_iter_finalize(map, iter);
	return nodes;
}

/* GC4 */
static gboolean check_votes(GError **error)
{
	cmap_handle_t map;
	if (failed(cmap_initialize(&map), "cannot read its settings", error))
		return FALSE;
	uint32_t two_node = cmap_number(map, "runtime.votequorum.two_node", 0), nodes = count_nodes(map);
	uint32_t expected = cmap_number(map, "quorum.expected_votes", nodes);
	cmap_finalize(map);
	if (two_node)
		g_set_error(error, GROUP_ERROR, 0, "corosync: two_node lets both halves of a cut cluster go on; expected three votes: a third host or a qdevice");
	else if (expected < nodes)
		g_set_error(error, GROUP_ERROR, 0, "corosync: expected_votes is %u with %u nodes in the nodelist; expected a vote of each", expected, nodes);
	return !two_node && expected >= nodes;
}

static gboolean open_quorum(struct group *g, GError **error)
{
	quorum_model_v1_data_t model = { .quorum_notify_fn = on_vote };
	uint32_t type = 0;
	if (failed(quorum_model_initialize(&g->quorum, QUORUM_MODEL_V1, (quorum_model_data_t *)&model, &type, g), "no connection", error))
		return FALSE;
	g->quorum_open = true;
	if (type != QUORUM_SET) {
		g_set_error(error, GROUP_ERROR, 0, "corosync: no quorum provider; expected quorum { provider: corosync_votequorum } in corosync.conf");
		return FALSE;
	}
	return !failed(quorum_trackstart(g->quorum, CS_TRACK_CHANGES), "no quorum tracking", error) &&
	       !failed(quorum_dispatch(g->quorum, CS_DISPATCH_ALL), "no quorum state", error);
}

static struct cpg_name group_name(void)
{
	struct cpg_name name = { .length = strlen(GROUP_NAME) };
	memcpy(name.value, GROUP_NAME, name.length);
	return name;
}

/* GC1: is there an agent of this host already? */
static gboolean check_alone(struct group *g, GError **error)
{
	struct cpg_name name = group_name();
	struct cpg_iteration_description_t d;
	cpg_iteration_handle_t iter;
	uint32_t other = 0;
	if (cpg_iteration_initialize(g->cpg, CPG_ITERATION_ONE_GROUP, &name, &iter) != CS_OK)
		return TRUE;
	while (cpg_iteration_next(iter, &d) == CS_OK)
		if (d.nodeid == g->self.n)
			other = d.pid;
	cpg_iteration_finalize(iter);
	if (other)
		g_set_error(error, GROUP_ERROR, 0, "an agent of this host (process %u) is in the group already; expected none", other);
	return !other;
}

static gboolean join_cpg(struct group *g, GError **error)
{
	struct cpg_name name = group_name();
	cs_error_t e = CS_ERR_TRY_AGAIN;
	for (int i = 0; i < JOIN_TRIES && e == CS_ERR_TRY_AGAIN; i++) {
		if (i)
			g_usleep(10000);
		e = cpg_join(g->cpg, &name);
	}
	return !failed(e, "cannot join the group", error);
}

static gboolean open_cpg(struct group *g, GError **error)
{
	cpg_model_v1_data_t model = { .cpg_deliver_fn = on_deliver, .cpg_confchg_fn = on_confchg, .cpg_totem_confchg_fn = on_ring,
		                      .flags = CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF };
	unsigned node = 0;
	if (failed(cpg_model_initialize(&g->cpg, CPG_MODEL_V1, (cpg_model_data_t *)&model, g), "no connection", error))
		return FALSE;
	g->cpg_open = true;
	if (failed(cpg_local_get(g->cpg, &node), "no node id", error))
		return FALSE;
	if (node < 1 || node > VCFT_HOST_MAX) {
		g_set_error(error, GROUP_ERROR, 0, "corosync: this node has id %u; expected a nodeid of 1 to %u in its nodelist", node, VCFT_HOST_MAX);
		return FALSE;
	}
	g->self.n = node;
	return TRUE;
}

static gboolean watch(struct group *g, GError **error)
{
	int cpg_fd, quorum_fd;
	if (failed(cpg_fd_get(g->cpg, &cpg_fd), "no descriptor", error) || failed(quorum_fd_get(g->quorum, &quorum_fd), "no descriptor", error))
		return FALSE;
	g->cpg_source = g_unix_fd_add_full(G_PRIORITY_HIGH, cpg_fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_cpg_readable, g, NULL);
	g->quorum_source = g_unix_fd_add_full(G_PRIORITY_HIGH, quorum_fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_quorum_readable, g, NULL);
	return TRUE;
}

static struct group *corosync_join(const struct group_callbacks *callbacks, void *user, GError **error)
{
	struct group *g = g_new0(struct group, 1);
	g->callbacks = *callbacks;
	g->user = user;
	g_queue_init(&g->queue);
	/* The flag is known before the first members are; the votes are checked before anything can be joined. */
	if (open_quorum(g, error) && check_votes(error) && open_cpg(g, error) && check_alone(g, error) && join_cpg(g, error) && watch(g, error))
		return g;
	free_group(g);
	return NULL;
}

static struct host_id corosync_self(const struct group *g) { return g->self; }

/* ---- end ---- */

static void free_group(struct group *g)
{
	unsigned sources[] = { g->cpg_source, g->quorum_source, g->retry_source, g->lost_source };
	for (size_t i = 0; i < G_N_ELEMENTS(sources); i++)
		if (sources[i])
			g_source_remove(sources[i]);
	if (g->cpg_open)
		cpg_finalize(g->cpg);
	if (g->quorum_open)
		quorum_finalize(g->quorum);
	g_queue_clear_full(&g->queue, (GDestroyNotify)g_bytes_unref);
	g_free(g->why);
	g_free(g);
}

static void corosync_leave(struct group *g)
{
	g->leaving = true;
	if (!g->dispatching)
		free_group(g);
}

bool group_corosync_probe(char *detail, size_t room)
{
	g_autoptr(GError) error = NULL;
	struct group *g = g_new0(struct group, 1);
	bool ok = open_quorum(g, &error) && check_votes(&error) && open_cpg(g, &error);
	if (ok)
		g_snprintf(detail, room, "corosync runs, this is node %u of %zu that are up, %s", g->self.n, g->quorate.vote.count,
		           g->quorate.flag ? "quorate" : "not quorate");
	else
		g_snprintf(detail, room, "%s", error->message);
	free_group(g);
	return ok;
}

const struct group_backend group_corosync = {
	.name = "corosync", .join = corosync_join, .self = corosync_self, .mcast = corosync_mcast, .leave = corosync_leave,
};
