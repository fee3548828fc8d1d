/* main.c - virtcft: take the command line apart, find the verb in the table, run it.
 *
 * No verb means status. Exit codes: 0 done, 1 failed (why stands on stderr, one line), 2 not understood. */
#include "cli/verbs.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

struct verb { const char *name, *arguments; unsigned least, most; const char *help; int (*run)(const struct cli *cli); };

static const struct verb verbs[] = {
#define VERB(name, arguments, least, most, help) { #name, arguments, least, most, help, verb_##name },
#include "cli/verbs.def"
#undef VERB
};

int cli_fail(const struct cli *cli, GError *error)
{
	fprintf(stderr, "virtcft: %s\n", error->message);
	if (cli->json)
		cli_print(json_pack("{s:b, s:s}", "ok", 0, "error", error->message));
	g_error_free(error);
	return CLI_FAILED;
}

void cli_print(json_t *object)
{
	char *line = json_dumps(object, JSON_COMPACT);
	puts(line ? line : "{}");
	fflush(stdout);
	free(line);
	json_decref(object);
}

static char *verb_list(void)
{
	GString *s = g_string_new("Verbs:\n");
	for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++) {
		g_autofree char *form = g_strdup_printf("%s %s", verbs[i].name, verbs[i].arguments);
		g_string_append_printf(s, "  %-31s %s\n", form, verbs[i].help);
	}
	g_string_append(s, "\nThe agent is virtcftd(8), the file is described in cluster.yaml(5).");
	return g_string_free(s, FALSE);
}

static int usage(const char *format, ...) G_GNUC_PRINTF(1, 2);
static int usage(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *text = g_strdup_vprintf(format, args);
	va_end(args);
	fprintf(stderr, "virtcft: %s; see virtcft --help\n", text);
	return CLI_USAGE;
}

static const struct verb *find(const char *name)
{
	for (size_t i = 0; i < G_N_ELEMENTS(verbs); i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

/* Options that belong to one verb; what is wrong with the rest is said by its name. */
static int run(struct cli *cli, const char *name, char **arguments)
{
	const struct verb *verb = find(name);
	unsigned count = g_strv_length(arguments);
	if (!verb)
		return usage("there is no verb '%s'", name);
	if (cli->follow && verb->run != verb_events)
		return usage("--follow belongs to events, not to %s", name);
	if (cli->bare && verb->run != verb_checkpoint)
		return usage("--bare belongs to checkpoint, not to %s", name);
	if (cli->config && verb->run != verb_check)
		return usage("--config belongs to check, not to %s", name);
	if (cli->replace && verb->run != verb_pki)
		return usage("--replace belongs to pki, not to %s", name);
	if (count < verb->least || count > verb->most)
		return usage("%s has %u arguments; expected: virtcft %s %s", name, count, name, verb->arguments);
	cli->arguments = arguments;
	return verb->run(cli);
}

static gboolean parse(int *argc, char ***argv, struct cli *cli, gboolean *version, GError **error)
{
	const GOptionEntry entries[] = {
		{ "json", 'j', 0, G_OPTION_ARG_NONE, &cli->json, "One JSON object a line instead of text", NULL },
		{ "socket", 's', 0, G_OPTION_ARG_FILENAME, &cli->socket, "The agent's control socket (default " CLI_SOCKET ")", "PATH" },
		{ "follow", 'f', 0, G_OPTION_ARG_NONE, &cli->follow, "events: go on as it happens", NULL },
		{ "bare", 0, 0, G_OPTION_ARG_STRING, &cli->bare, "checkpoint: stop a VM, save its device state, go on; nothing is stored", "VM" },
		{ "config", 'c', 0, G_OPTION_ARG_FILENAME, &cli->config, "check: the agent's settings (default /etc/virtcft/virtcftd.yaml)", "FILE" },
		{ "replace", 0, 0, G_OPTION_ARG_NONE, &cli->replace, "pki: make new keys and certificates in place of those that are there", NULL },
		{ "version", 0, 0, G_OPTION_ARG_NONE, version, "Print the version", NULL },
		G_OPTION_ENTRY_NULL,
	};
	g_autofree char *list = verb_list();
	g_autoptr(GOptionContext) context = g_option_context_new("[VERB [ARGUMENT…]] - virtual clusters that survive the loss of a host");
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_description(context, list);
	return g_option_context_parse(context, argc, argv, error);
}

int main(int argc, char **argv)
{
	struct cli cli = { 0 };
	gboolean version = FALSE;
	g_autoptr(GError) error = NULL;
	setlocale(LC_ALL, "");
	if (!parse(&argc, &argv, &cli, &version, &error))
		return usage("%s", error->message);
	if (version) {
		puts("virtcft " VCFT_VERSION);
		return CLI_OK;
	}
	if (!cli.socket)
		cli.socket = g_strdup(CLI_SOCKET);
	int status = argc > 1 ? run(&cli, argv[1], argv + 2) : run(&cli, "status", argv + 1);
	g_free(cli.socket);
	g_free(cli.bare);
	g_free(cli.config);
	return status;
}
