/* verb-up.c - virtcft up FILE: refuse a wrong file here, with its line, before anything is asked of an agent; then start, and wait until all VMs run. */
#include "cli/control-client.h"
#include "cli/verbs.h"

#include "base/config.h"

#include <stdio.h>

/* The text of a cluster.yaml that is right, and the folder that it is in. */
static gboolean read_file(const char *file, char **ret_text, char **ret_directory, GError **error)
{
	g_autofree char *text = NULL, *path = g_canonicalize_filename(file, NULL), *directory = g_path_get_dirname(path);
	gsize n;
	if (!g_file_get_contents(file, &text, &n, error))
		return FALSE;
	struct config_cluster *cluster = config_cluster_parse(text, n, file, directory, true, error);
	if (!cluster)
		return FALSE;
	config_cluster_free(cluster);
	*ret_text = g_steal_pointer(&text);
	*ret_directory = g_steal_pointer(&directory);
	return TRUE;
}

static void show_progress(json_t *object, void *user)
{
	const struct cli *cli = user;
	const char *progress = json_string_value(json_object_get(object, "progress"));
	if (cli->json)
		cli_print(json_incref(object));
	else if (progress)
		printf("  %s\n", progress);
	fflush(stdout);
}

int verb_up(const struct cli *cli)
{
	g_autofree char *text = NULL, *directory = NULL;
	GError *error = NULL;
	if (!read_file(cli->arguments[0], &text, &directory, &error))
		return cli_fail(cli, error);
	json_t *request = json_pack("{s:s, s:s, s:s, s:s}", "verb", "up", "file", cli->arguments[0], "directory", directory, "text", text);
	if (!request) {
		g_set_error(&error, CONFIG_ERROR, CONFIG_ERROR_FILE, "%s: the name of the file or its folder is not UTF-8", cli->arguments[0]);
		return cli_fail(cli, error);
	}
	json_t *answer = control_call(cli->socket, request, show_progress, (void *)cli, &error);
	if (!answer)
		return cli_fail(cli, error);
	if (cli->json)
		cli_print(answer);
	else {
		puts("all VMs run");
		json_decref(answer);
	}
	return CLI_OK;
}
