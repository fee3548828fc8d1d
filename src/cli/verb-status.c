/* verb-status.c - virtcft status: hosts, VMs, the newest checkpoint. With --json exactly the object that the agent gives. */
#include "cli/control-client.h"
#include "cli/table.h"
#include "cli/verbs.h"

#include <stdio.h>

static const char *text(json_t *object, const char *key) { return json_string_value(json_object_get(object, key)); }
static const char *yes_no(json_t *object, const char *key) { return json_is_true(json_object_get(object, key)) ? "yes" : "NO"; }

static json_int_t number(json_t *object, const char *key) { return (json_int_t)json_number_value(json_object_get(object, key)); }

static char *milliseconds(json_t *last, const char *key)
{
	return g_strdup_printf("%.1f ms", json_number_value(json_object_get(last, key)) / 1000);
}

static char *size(json_t *object, const char *key)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double bytes = json_number_value(json_object_get(object, key));
	size_t u = 0;
	for (; bytes >= 1024 && u + 1 < G_N_ELEMENTS(units); u++)
		bytes /= 1024;
	return g_strdup_printf("%.*f %s", u ? 1 : 0, bytes, units[u]);
}

static char *names(json_t *list)
{
	GString *s = g_string_new(NULL);
	size_t i;
	json_t *name;
	json_array_foreach(list, i, name)
		g_string_append_printf(s, "%s%s", i ? "," : "", json_string_value(name));
	if (!s->len)
		g_string_append(s, "-");
	return g_string_free(s, FALSE);
}

static const char *or_unknown(const char *word) { return word ? word : "?"; }

/* A line for each: those of the host that is asked with their reasons, of the others it knows the names. */
static void print_shortages(json_t *status)
{
	const char *self = text(status, "host");
	size_t i, j;
	json_t *shortage, *host, *name;
	json_array_foreach(json_object_get(status, "shortages"), i, shortage)
		printf("%s is short of %s: %s\n", or_unknown(self), or_unknown(text(shortage, "short")), or_unknown(text(shortage, "text")));
	json_array_foreach(json_object_get(status, "hosts"), i, host)
		if (g_strcmp0(text(host, "name"), self))
			json_array_foreach(json_object_get(host, "short"), j, name)
				printf("%s is short of %s\n", or_unknown(text(host, "name")), or_unknown(json_string_value(name)));
}

static void print_hosts(json_t *status)
{
	struct table *t = table_new("lll");
	size_t i;
	json_t *host;
	table_add(t, "HOST", "STATE", "ADDRESS");
	json_array_foreach(json_object_get(status, "hosts"), i, host)
		table_add(t, text(host, "name"), text(host, "state"), text(host, "address"));
	table_print(t);
}

static void add_vm(struct table *t, json_t *vm)
{
	json_t *last = json_object_get(vm, "last");
	g_autofree char *backups = names(json_object_get(vm, "backups")), *memory = size(vm, "memory_bytes");
	if (!json_is_object(last)) {
		table_add(t, text(vm, "name"), text(vm, "host"), backups, text(vm, "state"), memory, NULL, NULL, NULL, NULL, NULL, NULL);
		return;
	}
	g_autofree char *epoch = g_strdup_printf("%" JSON_INTEGER_FORMAT, number(last, "epoch"));
	g_autofree char *pages = g_strdup_printf("%" JSON_INTEGER_FORMAT, number(last, "dirty_pages"));
	g_autofree char *pause = milliseconds(last, "pause_us"), *commit = milliseconds(last, "commit_us");
	g_autofree char *raw = size(last, "raw_bytes"), *sent = size(last, "sent_bytes");
	table_add(t, text(vm, "name"), text(vm, "host"), backups, text(vm, "state"), memory, epoch, pause, pages, raw, sent, commit);
}

static void print_vms(json_t *status)
{
	struct table *t = table_new("llllrrrrrrr");
	size_t i;
	json_t *vm;
	table_add(t, "VM", "HOST", "BACKUPS", "STATE", "MEMORY", "EPOCH", "PAUSE", "PAGES", "RAW", "SENT", "COMMIT");
	json_array_foreach(json_object_get(status, "vms"), i, vm)
		add_vm(t, vm);
	table_print(t);
}

static void print_status(json_t *status)
{
	const char *trouble = text(status, "trouble"), *cluster = text(status, "cluster"), *state = text(status, "state");
	if (cluster)
		printf("cluster %s  %s  generation %" JSON_INTEGER_FORMAT "  committed %" JSON_INTEGER_FORMAT "  released %" JSON_INTEGER_FORMAT
		       "  protected %s\n", cluster, state ? state : "", number(status, "generation"), number(status, "committed"),
		       number(status, "released"), yes_no(status, "protected"));
	else
		puts("no cluster is up; start one with: virtcft up FILE");
	if (trouble)
		printf("trouble: %s\n", trouble);
	print_shortages(status);
	puts("");
	print_hosts(status);
	if (json_array_size(json_object_get(status, "vms"))) {
		puts("");
		print_vms(status);
	}
}

int verb_status(const struct cli *cli)
{
	GError *error = NULL;
	json_t *answer = control_call(cli->socket, json_pack("{s:s}", "verb", "status"), NULL, NULL, &error);
	json_t *status = json_object_get(answer, "status");
	if (!answer)
		return cli_fail(cli, error);
	if (cli->json)
		cli_print(json_incref(status));
	else
		print_status(status);
	json_decref(answer);
	return CLI_OK;
}
