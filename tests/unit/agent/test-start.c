/* test-start.c - a start of the agent itself, as the group's messages make it: a whole agent, whose group is the test.
 *
 * The test's own group_local stands in for src/group/local.c, which then is not linked: what the agent multicasts is noted and goes nowhere, and a message
 * is delivered when the test says so, from whatever host. So what comes while the configuration is read comes then for certain: it is read by a
 * thread, which tells the loop, and the loop does not turn in between. */
#include "agent/agent-private.h"
#include "agent/control.h"
#include "base/config.h"
#include "base/messages.h"
#include "client.h"

#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>

static const struct host_id self = { 1 }, other = { 2 };
static const struct generation running = { 3u << 6 | 2u };   /* third start of anything, led by host 2 */
static const char *const cluster_yaml = "cluster: overtaken\nnetworks: [ { name: lan } ]\nvms: [ { name: a, memory: 16M, kernel: /proc/version } ]\n";

/* ---- the group ---- */

struct group { struct group_callbacks callbacks; void *user; enum message_type said[64]; unsigned said_count; uint32_t shortages; };

static struct group *join(const struct group_callbacks *callbacks, void *user, GError **error)
{
	struct group *g = g_new0(struct group, 1);
	(void)error;
	g->callbacks = *callbacks;
	g->user = user;
	return g;
}

static struct host_id self_of(const struct group *g) { return g ? self : other; }

static void note(struct group *g, const void *data, size_t n)
{
	g_autofree struct message *m = g_new(struct message, 1);
	g_assert_true(message_decode(data, n, m));
	g_assert_cmpuint(g->said_count, <, G_N_ELEMENTS(g->said));
	g->said[g->said_count++] = m->type;
	if (m->type == MESSAGE_STATS)
		g->shortages = m->shortages;
}

static void leave(struct group *g) { g_free(g); }

const struct group_backend group_local = { .name = "local", .join = join, .self = self_of, .mcast = note, .leave = leave };

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
	s->folder = g_strdup_printf("/dev/shm/vcft-start-%d", getpid());   /* ram_dir must be on a tmpfs */
	g_assert_cmpint(g_mkdir(s->folder, 0700), ==, 0);
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

/* No checkpoint is ever committed here. */
static void test_b2_the_others_are_told_of_a_shortage(struct start *s, gconstpointer data)
{
	(void)data;
	struct group *g = s->agent->group;
	gint64 end = g_get_monotonic_time() + 20 * G_TIME_SPAN_SECOND;
	shortage_note(s->agent, SHORT_BACKUP, "no backup answers");
	while (!g->shortages && g_get_monotonic_time() < end)
		g_main_context_iteration(NULL, TRUE);
	g_assert_cmpuint(g->shortages, ==, 1u << SHORT_BACKUP);
}

/* ---- what is said of a cluster that stands ---- */

static const struct vm_id first = { 0 };

static void test_a_recovery_that_has_finished_is_no_trouble(struct start *s, gconstpointer data)
{
	(void)data;
	struct epoch_action run = { .type = EPOCH_ACT_RUN, .generation = s->agent->generation };
	deliver_config(s->agent);
	g_assert_true(takes_part(s));
	agent_trouble(s->agent, first, TROUBLE_DIED, "QEMU failed");
	g_assert_nonnull(s->agent->trouble);
	recovery_run(s->agent, &run);
	while (!s->agent->switch_runs)
		g_main_context_iteration(NULL, TRUE);
	g_assert_null(s->agent->trouble);
}

static void test_a_cluster_that_has_ended_has_no_trouble(struct start *s, gconstpointer data)
{
	(void)data;
	deliver_config(s->agent);
	g_assert_true(takes_part(s));
	agent_trouble(s->agent, first, TROUBLE_DIED, "QEMU failed");
	deliver(s->agent, message(MESSAGE_DOWN, running));
	g_assert_null(s->agent->cluster);
	g_assert_null(s->agent->trouble);
}

static void become_lost(struct start *s)
{
	deliver_config(s->agent);
	g_assert_true(takes_part(s));
	deliver(s->agent, message(MESSAGE_LOST, running));
	g_assert_true(agent_lost(s->agent));
	g_assert_cmpuint(s->agent->lost_tick, !=, 0);
}

static void count_lost(const char *line, void *user)
{
	if (strstr(line, "\"cluster-lost\""))
		++*(unsigned *)user;
}

static void test_lost_is_said_when_it_stays_so(struct start *s, gconstpointer data)
{
	(void)data;
	unsigned count = 0;
	become_lost(s);
	events_listen(s->agent->events, count_lost, &count, TRUE);
	g_assert_cmpuint(count, ==, 0);
	g_test_expect_message(NULL, G_LOG_LEVEL_CRITICAL, "no image of *");
	while (s->agent->lost_tick)
		g_main_context_iteration(NULL, TRUE);
	g_test_assert_expected_messages();
	g_assert_cmpuint(count, ==, 1);
}

static const char *const both_hosts = "cluster: again\nhosts: [ { name: host1, address: 127.0.0.1 }, { name: host2, address: 127.0.0.2 } ]\n"
                                      "vms: [ { name: a, memory: 16M, kernel: /proc/version } ]\n";

static void know_hosts(struct agent *a)
{
	for (unsigned h = 1; h <= 2; h++) {
		a->peers[h].known = true;
		g_snprintf(a->peers[h].name, sizeof a->peers[h].name, "host%u", h);
	}
}

/* Ordered as said: every host forgets what is lost before it hears of the new one. */
static void test_up_of_a_lost_cluster_ends_it_first(struct start *s, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	become_lost(s);
	g_assert_true(g_str_has_prefix(s->agent->trouble, "no image of "));
	know_hosts(s->agent);
	s->agent->group->said_count = 0;
	agent_up(s->agent, "cluster.yaml", "/", both_hosts, &error);
	g_assert_no_error(error);
	g_assert_cmpuint(s->agent->group->said_count, ==, 2);
	g_assert_cmpint(s->agent->group->said[0], ==, MESSAGE_DOWN);
	g_assert_cmpint(s->agent->group->said[1], ==, MESSAGE_CONFIG);
	deliver(s->agent, message(MESSAGE_DOWN, running));
	g_assert_cmpuint(s->agent->lost_tick, ==, 0);      /* it was lost for a moment: nobody is told */
	deliver_config(s->agent);
	g_assert_true(takes_part(s) && !agent_lost(s->agent) && !s->agent->trouble);
}

/* It is checked before anything is ended. */
static void test_a_bad_file_ends_nothing(struct start *s, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	become_lost(s);
	s->agent->group->said_count = 0;
	g_assert_false(agent_up(s->agent, "cluster.yaml", "/", both_hosts, &error));   /* host2 is not known */
	g_assert_cmpuint(s->agent->group->said_count, ==, 0);
	g_assert_true(agent_lost(s->agent));
}

/* The client is answered when the new one runs. */
static void test_the_end_of_what_is_lost_is_no_answer(struct start *s, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	g_autofree char *path = g_build_filename(s->folder, "run", "control.sock", NULL);
	struct control *control = control_new(s->agent, path, &error);
	g_assert_no_error(error);
	become_lost(s);
	know_hosts(s->agent);
	s->agent->group->said_count = 0;
	int client = ask(path, json_pack("{s:s, s:s, s:s}", "verb", "up", "directory", "/", "text", both_hosts));
	while (s->agent->group->said_count < 2)
		g_main_context_iteration(NULL, TRUE);
	deliver(s->agent, message(MESSAGE_DOWN, running));
	events_say(s->agent->events, "recovery-finished", NULL);
	json_t *said = answer(client);
	g_assert_true(json_is_true(json_object_get(said, "ok")));
	json_decref(said);
	control_free(control);
}

static void test_up_of_a_cluster_that_is_not_lost_is_refused(struct start *s, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	deliver_config(s->agent);
	g_assert_true(takes_part(s));
	know_hosts(s->agent);
	g_assert_false(agent_up(s->agent, "cluster.yaml", "/", both_hosts, &error));
	g_assert_nonnull(strstr(error->message, "is up already"));
}

static void add(const char *path, void (*test)(struct start *, gconstpointer)) { g_test_add(path, struct start, NULL, set_up, test, tear_down); }

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	add("/agent/start/read-is-taken-part-in", test_a_start_that_is_read_is_taken_part_in);
	add("/agent/start/overtaken-is-dropped", test_a_start_that_a_running_cluster_has_overtaken_is_dropped);
	add("/agent/start/behind-what-ran-before", test_a_start_behind_what_ran_before_is_taken_part_in);
	add("/agent/shortage/B2-others-are-told", test_b2_the_others_are_told_of_a_shortage);
	add("/agent/trouble/none-behind-a-recovery", test_a_recovery_that_has_finished_is_no_trouble);
	add("/agent/trouble/none-behind-the-end", test_a_cluster_that_has_ended_has_no_trouble);
	add("/agent/lost/said-when-it-stays-so", test_lost_is_said_when_it_stays_so);
	add("/agent/lost/up-ends-it-first", test_up_of_a_lost_cluster_ends_it_first);
	add("/agent/lost/its-end-is-no-answer", test_the_end_of_what_is_lost_is_no_answer);
	add("/agent/lost/a-bad-file-ends-nothing", test_a_bad_file_ends_nothing);
	add("/agent/lost/what-is-not-lost-is-up", test_up_of_a_cluster_that_is_not_lost_is_refused);
	return g_test_run();
}
