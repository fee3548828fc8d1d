/* verb-checkpoint.c - virtcft checkpoint: one now, committed when this returns. --bare VM [COUNT]: the yardstick, COUNT times stop, save of the
 * device state and cont, by QEMU's plain commands; nothing is stored and no epoch ends. */
#include "cli/control-client.h"
#include "cli/verbs.h"

#include <stdio.h>
#include <stdlib.h>

#define BARE_COUNT 10
#define BARE_COUNT_MAX 1000

static int commit(const struct cli *cli)
{
	GError *error = NULL;
	json_t *answer = control_call(cli->socket, json_pack("{s:s}", "verb", "checkpoint"), NULL, NULL, &error);
	if (!answer)
		return cli_fail(cli, error);
	if (cli->json) {
		cli_print(answer);
		return CLI_OK;
	}
	printf("checkpoint %" JSON_INTEGER_FORMAT " is committed\n", json_integer_value(json_object_get(answer, "epoch")));
	json_decref(answer);
	return CLI_OK;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void print_pauses(const char *vm, json_t *list)
{
	size_t n = json_array_size(list), i;
	g_autofree double *us = g_new0(double, n + 1);
	json_t *value;
	json_array_foreach(list, i, value)
		us[i] = json_number_value(value);
	qsort(us, n, sizeof *us, compare);
	if (n)
		printf("%s: %zu bare pauses, median %.0f µs, least %.0f µs, most %.0f µs\n", vm, n, us[n / 2], us[0], us[n - 1]);
}

static int bare(const struct cli *cli, guint64 count)
{
	GError *error = NULL;
	json_t *request = json_pack("{s:s, s:s, s:I}", "verb", "bare", "vm", cli->bare, "count", (json_int_t)count);
	json_t *answer = control_call(cli->socket, request, NULL, NULL, &error);
	if (!answer)
		return cli_fail(cli, error);
	const char *why = json_string_value(json_object_get(answer, "error"));
	if (why) {
		g_set_error(&error, g_quark_from_static_string("virtcft-cli"), 0, "%s: %s", cli->bare, why);
		json_decref(answer);
		return cli_fail(cli, error);
	}
	if (cli->json) {
		cli_print(answer);
		return CLI_OK;
	}
	print_pauses(cli->bare, json_object_get(answer, "pause_us"));
	json_decref(answer);
	return CLI_OK;
}

int verb_checkpoint(const struct cli *cli)
{
	const char *given = cli->arguments[0];
	guint64 count = BARE_COUNT;
	bool wrong = given && !g_ascii_string_to_unsigned(given, 10, 1, BARE_COUNT_MAX, &count, NULL);
	if (wrong || (given && !cli->bare)) {
		fprintf(stderr, "virtcft: %s; see virtcft --help\n", wrong ? "COUNT is 1 to 1000" : "COUNT belongs to checkpoint --bare VM");
		return CLI_USAGE;
	}
	return cli->bare ? bare(cli, count) : commit(cli);
}
