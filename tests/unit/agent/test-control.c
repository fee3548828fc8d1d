/* test-control.c - what clients of the control socket are answered: a whole agent of one host, the real local group, and clients of its socket. No VM
 * is ever started: machines are made, and their workers have no process. */
#include "agent/agent-private.h"
#include "agent/control.h"
#include "base/config.h"
#include "client.h"

#include <glib.h>
#include <string.h>
#include <unistd.h>

struct host { char *folder, *socket; GMainLoop *loop; struct agent *agent; struct control *control; };

static void set_up(struct host *h, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	h->folder = g_strdup_printf("/dev/shm/vcft-control-%d", getpid());
	g_autofree char *text = g_strdup_printf("name: host1\ngroup: local\nrun_dir: %s/run\nram_dir: %s/ram\nstate_dir: %s/state\n", h->folder, h->folder, h->folder);
	struct config_agent *config = config_agent_parse(text, strlen(text), "virtcftd.yaml", &error);
	g_assert_no_error(error);
	h->loop = g_main_loop_new(NULL, FALSE);
	h->agent = agent_new(config, h->loop, &error);
	g_assert_no_error(error);
	h->socket = g_build_filename(h->folder, "run", "control.sock", NULL);
	h->control = control_new(h->agent, h->socket, &error);
	g_assert_no_error(error);
	while (!h->agent->members)
		g_main_context_iteration(NULL, TRUE);
}

static void tear_down(struct host *h, gconstpointer data)
{
	(void)data;
	struct config_agent *config = h->agent->config;
	if (h->control)
		control_free(h->control);
	agent_free(h->agent);
	config_agent_free(config);
	g_main_loop_unref(h->loop);
	g_autofree char *remove = g_strdup_printf("rm -rf '%s'", h->folder);
	g_assert_true(g_spawn_command_line_sync(remove, NULL, NULL, NULL, NULL));
	g_free(h->folder);
	g_free(h->socket);
}

/* ---- a cluster that this host has been told of ---- */

#define TWO_VMS "cluster: two\nvms: [ { name: a, memory: 16M, kernel: /proc/version }, { name: b, memory: 16M, kernel: /proc/version } ]\n"

/* As if both VMs had been placed here, by a group that says nothing more. */
static void know_two_vms(struct agent *a)
{
	g_autoptr(GError) error = NULL;
	a->cluster = config_cluster_parse(TWO_VMS, strlen(TWO_VMS), "cluster.yaml", "/", false, &error);
	g_assert_no_error(error);
	for (uint32_t i = 0; i < 2; i++) {
		struct machine_options o = { .id = { i }, .self = a->self, .agent = a->config, .config = &a->cluster->vms[i], .cluster = "two", .net = a->net };
		a->machines[i] = machine_new(&o, &agent_machine_notes, a);
	}
}

static void test_bare_answers_for_its_own_vm(struct host *h, gconstpointer data)
{
	(void)data;
	know_two_vms(h->agent);
	int a = ask(h->socket, json_pack("{s:s, s:s, s:i}", "verb", "bare", "vm", "a", "count", 1));
	int b = ask(h->socket, json_pack("{s:s, s:s, s:i}", "verb", "bare", "vm", "b", "count", 1));
	json_t *of_b = answer(b), *of_a = answer(a);
	g_assert_cmpstr(text_of(of_a, "vm"), ==, "a");
	g_assert_cmpstr(text_of(of_b, "vm"), ==, "b");
	json_decref(of_a);
	json_decref(of_b);
}

/* ---- up ---- */

#define BAD_UPLINK "cluster: c\nnetworks: [ { name: wan, uplink: lo } ]\nvms: [ { name: a, memory: 16M, kernel: /proc/version } ]\n"

static int ask_up(const struct host *h, const char *text)
{
	return ask(h->socket, json_pack("{s:s, s:s, s:s}", "verb", "up", "directory", "/", "text", text));
}

/* No TAP device can have the name of what is there already; nor can there be one at all without /dev/net/tun. */
static void test_up_says_which_network_cannot_be(struct host *h, gconstpointer data)
{
	(void)data;
	for (int i = 0; i < 2; i++) {   /* the agent goes on, and is as it was */
		json_t *refused = answer(ask_up(h, BAD_UPLINK));
		g_assert_true(json_is_false(json_object_get(refused, "ok")));
		g_assert_true(g_str_has_prefix(text_of(refused, "error"), "network wan: "));
		g_assert_null(h->agent->cluster);
		g_assert_false(h->agent->left);
		json_decref(refused);
	}
}

static void note_refusal(const char *line, void *user) { *(bool *)user = *(bool *)user || strstr(line, "configuration-refused"); }

/* As where the agent has to leave its group: what it has said is not lost when it ends before its loop turns again. */
static void test_what_was_said_is_sent_at_the_end(struct host *h, gconstpointer data)
{
	(void)data;
	bool refused = false;
	events_listen(h->agent->events, note_refusal, &refused, FALSE);
	int fd = ask_up(h, BAD_UPLINK);
	while (!refused)
		g_main_context_iteration(NULL, TRUE);
	control_free(g_steal_pointer(&h->control));
	json_t *said = answer(fd);
	g_assert_true(g_str_has_prefix(text_of(said, "error"), "network wan: "));
	json_decref(said);
}

static void add(const char *path, void (*test)(struct host *, gconstpointer)) { g_test_add(path, struct host, NULL, set_up, test, tear_down); }

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	add("/agent/control/bare-answers-for-its-own-vm", test_bare_answers_for_its_own_vm);
	add("/agent/control/up-says-which-network-cannot-be", test_up_says_which_network_cannot_be);
	add("/agent/control/what-was-said-is-sent-at-the-end", test_what_was_said_is_sent_at_the_end);
	return g_test_run();
}
