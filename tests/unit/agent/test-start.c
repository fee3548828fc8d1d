/* test-start.c - a start of the agent itself, as the group's messages make it: a whole agent, whose group is the test.
 *
 * The test's own group_local stands in for src/group/local.c, which then is not linked: what the agent multicasts goes nowhere, and a message is
 * delivered when the test says so, from whatever host. So what comes while the configuration is read comes then for certain: it is read by a
 * thread, which tells the loop, and the loop does not turn in between. */
#include "agent/agent.h"
#include "base/config.h"
#include "base/messages.h"

#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>

static const struct host_id self = { 1 }, other = { 2 };
static const struct generation running = { 3u << 6 | 2u };   /* third start of anything, led by host 2 */
static const char *const cluster_yaml = "cluster: overtaken\nnetworks: [ { name: lan } ]\nvms: [ { name: a, memory: 16M, kernel: /proc/version } ]\n";

/* ---- the group ---- */

struct group { struct group_callbacks callbacks; void *user; };

static struct group *join(const struct group_callbacks *callbacks, void *user, GError **error)
{
	struct group *g = g_new0(struct group, 1);
	(void)error;
	g->callbacks = *callbacks;
	g->user = user;
	return g;
}

static struct host_id self_of(const struct group *g) { return g ? self : other; }
static void swallow(struct group *g, const void *data, size_t n) { (void)g, (void)data, (void)n; }
static void leave(struct group *g) { g_free(g); }

const struct group_backend group_local = { .name = "local", .join = join, .self = self_of, .mcast = swallow, .leave = leave };

static void deliver(struct agent *a, struct message *m)
{
	size_t room = message_size(m);
	g_autofree uint8_t *bytes = g_malloc(room);
	size_t n = message_encode(m, bytes, room);
	g_assert_cmpuint(n, >, 0);
	a->group->callbacks.deliver(other, bytes, n, a->group->user);
	g_free(m);
}

static struct message *message(enum message_type type, struct generation g)
{
	struct message *m = g_new0(struct message, 1);
	m->type = type;
	m->generation = g;
	return m;
}

/* `up` on the other host. */
static void deliver_config(struct agent *a)
{
	struct message *m = message(MESSAGE_CONFIG, (struct generation){ 0 });
	m->config.directory = "/";
	m->config.directory_bytes = 1;
	m->config.text = cluster_yaml;
	m->config.text_bytes = (uint32_t)strlen(cluster_yaml);
	deliver(a, m);
}

/* ---- the agent ---- */

struct start { char *folder; GMainLoop *loop; struct agent *agent; };

static void set_up(struct start *s, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	s->folder = g_dir_make_tmp("vcft-start-XXXXXX", &error);
	g_assert_no_error(error);
	g_autofree char *file = g_build_filename(s->folder, "virtcftd.yaml", NULL);
	g_autofree char *text = g_strdup_printf("name: host1\ngroup: local\nrun_dir: %s/run\nram_dir: %s/ram\nstate_dir: %s/state\n", s->folder, s->folder, s->folder);
	g_assert_true(g_file_set_contents(file, text, -1, &error));
	struct config_agent *config = config_agent_read(file, &error);
	g_assert_no_error(error);
	s->loop = g_main_loop_new(NULL, FALSE);
	s->agent = agent_new(config, s->loop, &error);
	g_assert_no_error(error);
	s->agent->group->callbacks.membership(host_bit(self) | host_bit(other), true, s->agent);
}

static void tear_down(struct start *s, gconstpointer data)
{
	(void)data;
	struct config_agent *config = s->agent->config;
	agent_free(s->agent);
	config_agent_free(config);
	g_main_loop_unref(s->loop);
	g_autofree char *remove = g_strdup_printf("rm -rf '%s'", s->folder);
	g_assert_true(g_spawn_command_line_sync(remove, NULL, NULL, NULL, NULL));
	g_free(s->folder);
}

/* Whether this host takes part in the start, when the configuration has been read. */
static bool takes_part(struct start *s)
{
	struct epoch_view view;
	while (s->agent->preparing)
		g_main_context_iteration(NULL, TRUE);
	epoch_view(s->agent->core, &view);
	return s->agent->cluster && view.state != EPOCH_EMPTY;
}

static void test_a_start_that_is_read_is_taken_part_in(struct start *s, gconstpointer data)
{
	(void)data;
	deliver_config(s->agent);
	g_assert_true(s->agent->preparing);
	g_assert_true(takes_part(s));
}

/* docs/protocol.md, "Start": the core must hear of CONFIG when it is delivered, else it cannot know that RESUME came after it. */
static void test_a_start_that_a_running_cluster_has_overtaken_is_dropped(struct start *s, gconstpointer data)
{
	(void)data;
	deliver_config(s->agent);
	deliver(s->agent, message(MESSAGE_RESUME, running));
	g_assert_true(s->agent->preparing);
	g_assert_false(takes_part(s));
}

/* The other order: what was there before is no reason, it may be what a `down` has ended. */
static void test_a_start_behind_what_ran_before_is_taken_part_in(struct start *s, gconstpointer data)
{
	(void)data;
	deliver(s->agent, message(MESSAGE_RESUME, running));
	deliver_config(s->agent);
	g_assert_true(takes_part(s));
}

static void add(const char *path, void (*test)(struct start *, gconstpointer)) { g_test_add(path, struct start, NULL, set_up, test, tear_down); }

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	add("/agent/start/read-is-taken-part-in", test_a_start_that_is_read_is_taken_part_in);
	add("/agent/start/overtaken-is-dropped", test_a_start_that_a_running_cluster_has_overtaken_is_dropped);
	add("/agent/start/behind-what-ran-before", test_a_start_behind_what_ran_before_is_taken_part_in);
	return g_test_run();
}
