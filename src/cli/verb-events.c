/* verb-events.c - virtcft events: those that the agent has kept, --follow: and those to come. With --json a line is an event as the agent gives it.
 *
 * For people: the time of day (an event's time is the machine's monotonic clock, in ns), the event, then its other keys. */
#include "base/clock.h"
#include "cli/control-client.h"
#include "cli/verbs.h"

#include <stdio.h>
#include <string.h>

static char *time_of_day(json_int_t monotonic)
{
	gint64 ago_us = (clock_now() - monotonic) / NSEC_PER_USEC;
	g_autoptr(GDateTime) now = g_date_time_new_now_local();
	g_autoptr(GDateTime) then = g_date_time_add(now, -ago_us);
	g_autofree char *seconds = g_date_time_format(then, "%H:%M:%S");
	return g_strdup_printf("%s.%03d", seconds, g_date_time_get_microsecond(then) / 1000);
}

static void print_key(const char *key, json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
	if (strcmp(key, "time") != 0 && strcmp(key, "event") != 0 && text)
		printf("  %s %s", key, json_is_string(value) ? json_string_value(value) : text);
	free(text);
}

static void show_event(json_t *event, void *user)
{
	const struct cli *cli = user;
	const char *name = json_string_value(json_object_get(event, "event")), *key;
	json_t *value;
	if (cli->json) {
		cli_print(json_incref(event));
		return;
	}
	g_autofree char *time = time_of_day(json_integer_value(json_object_get(event, "time")));
	printf("%s  %-20s", time, name ? name : "?");
	json_object_foreach(event, key, value)
		print_key(key, value);
	puts("");
	fflush(stdout);
}

int verb_events(const struct cli *cli)
{
	GError *error = NULL;
	json_t *request = json_pack("{s:s, s:b}", "verb", "events", "follow", cli->follow);
	json_t *answer = control_call(cli->socket, request, show_event, (void *)cli, &error);
	if (!answer)
		return cli_fail(cli, error);
	json_decref(answer);
	return CLI_OK;
}
