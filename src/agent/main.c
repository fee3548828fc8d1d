/* main.c - virtcftd: options, the loop, an orderly end at SIGTERM and SIGINT. What this host lacks is said when the agent serves, a line for each; what keeps
 * it from serving is the one line it ends with. */
#include "agent/agent.h"
#include "agent/control.h"
#include "agent/privilege.h"
#include "agent/spare.h"
#include "agent/watchdog.h"
#include "base/fault.h"
#include "vm/vmm.h"

#include <glib-unix.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/resource.h>
#include <unistd.h>

#define DEFAULT_CONFIG "/etc/virtcft/virtcftd.yaml"

static gboolean on_signal(gpointer loop)
{
	g_main_loop_quit(loop);
	return G_SOURCE_CONTINUE;
}

/* A VM takes some ten descriptors, a host of a full cluster a thousand. */
static void raise_descriptors(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

struct features { size_t count; struct vm_feature of[VM_FEATURES_MAX]; };

static void say_missing(const struct features *f)
{
	for (size_t i = 0; i < f->count; i++)
		if (!f->of[i].found)
			g_message("%s is missing here (%s); instead: %s", f->of[i].name, f->of[i].detail, f->of[i].instead ? f->of[i].instead : "nothing, no VM can run");
	if (geteuid() != 0)
		g_message("root is missing here (this is user %u); instead: QEMU runs as this user, networks without an uplink only", (unsigned)geteuid());
}

static int serve(struct config_agent *config, GMainLoop *loop, GError **error)
{
	g_autofree struct features *features = g_new0(struct features, 1);
	struct vm_folders at = { config->ram_dir, config->plugin_dir };
	features->count = vm_features(&at, features->of, VM_FEATURES_MAX);   /* before the group counts on this host: it takes a moment */
	struct agent *agent = agent_new(config, loop, error);
	if (!agent) {
		if (geteuid() != 0)
			g_prefix_error(error, "the agent starts as root, this is user %u: ", (unsigned)geteuid());
		return 1;
	}
	g_autofree char *path = g_build_filename(config->run_dir, "control.sock", NULL);
	struct control *control = control_new(agent, path, error);
	if (control) {
		say_missing(features);
		g_message("host %s serves, group %s", config->name, config->group);
		watchdog_attach();
		spare_attach();
		g_main_loop_run(loop);
		control_free(control);
	}
	int status = control && !agent->left ? 0 : 1;
	agent_free(agent);
	return status;
}

int main(int argc, char **argv)
{
	g_autofree char *file = NULL;
	gboolean no_watchdog = FALSE;
	g_autoptr(GError) error = NULL;
	const GOptionEntry entries[] = {
		{ "config", 'c', 0, G_OPTION_ARG_FILENAME, &file, "The agent's settings (default " DEFAULT_CONFIG ")", "FILE" },
		{ "no-watchdog", 0, 0, G_OPTION_ARG_NONE, &no_watchdog, "Do not end an agent that hangs (for debuggers)", NULL },
		G_OPTION_ENTRY_NULL,
	};
	g_autoptr(GOptionContext) context = g_option_context_new("- the agent of VirtCFT");
	g_option_context_add_main_entries(context, entries, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	umask(077);
	raise_descriptors();
	if (!g_option_context_parse(context, &argc, &argv, &error)) {
		fprintf(stderr, "virtcftd: %s\n", error->message);
		return 2;
	}
	if (!privilege_reduce(&error)) {
		fprintf(stderr, "virtcftd: %s\n", error->message);
		return 1;
	}
	if (!no_watchdog && !watchdog_start()) {
		fprintf(stderr, "virtcftd: the watchdog cannot be started\n");
		return 1;
	}
	struct config_agent *config = fault_read_environment(&error) ? config_agent_read(file, &error) : NULL;
	if (!config || !config_agent_identify(config, &error)) {
		config_agent_free(config);
		fprintf(stderr, "virtcftd: %s\n", error->message);
		return 2;
	}
	g_autoptr(GMainLoop) loop = g_main_loop_new(NULL, FALSE);
	g_unix_signal_add(SIGTERM, on_signal, loop);
	g_unix_signal_add(SIGINT, on_signal, loop);
	int status = serve(config, loop, &error);
	if (error)
		fprintf(stderr, "virtcftd: %s\n", error->message);
	config_agent_free(config);
	return status;
}
