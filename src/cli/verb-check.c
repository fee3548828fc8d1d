/* verb-check.c - virtcft check: what works on this host, what is missing, what is used instead. Asks no agent. */
#include "cli/table.h"
#include "cli/verbs.h"

#include "group/group.h"
#include "vm/vmm.h"

#include <stdio.h>
#include <unistd.h>

#define FEATURES_MAX 32

/* Root and corosync, then the VM's side. */
static size_t find_features(struct vm_feature out[static FEATURES_MAX])
{
	out[0] = (struct vm_feature){ .name = "root", .found = geteuid() == 0 };
	g_snprintf(out[0].detail, sizeof out[0].detail, "user id %u", (unsigned)geteuid());
	out[1] = (struct vm_feature){ .name = "corosync", .instead = "group local: this host alone" };
	out[1].found = group_corosync_probe(out[1].detail, sizeof out[1].detail);
	return 2 + vm_features(out + 2, FEATURES_MAX - 2);
}

/* Names of what is missing and has nothing in its place, NULL: none. */
static char *missing(const struct vm_feature *f, size_t n)
{
	g_autoptr(GString) s = g_string_new(NULL);
	for (size_t i = 0; i < n; i++)
		if (!f[i].found && !f[i].instead)
			g_string_append_printf(s, "%s%s", s->len ? ", " : "", f[i].name);
	return s->len ? g_strdup(s->str) : NULL;
}

static void print_table(const struct vm_feature *f, size_t n)
{
	struct table *t = table_new("llll");
	table_add(t, "FEATURE", "HERE", "FOUND", "INSTEAD");
	for (size_t i = 0; i < n; i++)
		table_add(t, f[i].name, f[i].found ? "yes" : "no", f[i].detail, f[i].found ? "" : f[i].instead ? f[i].instead : "nothing: it is needed");
	table_print(t);
}

static void print_json(const struct vm_feature *f, size_t n, bool ok)
{
	json_t *list = json_array();
	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_pack("{s:s, s:b, s:s, s:s?}", "name", f[i].name, "found", f[i].found, "detail", f[i].detail,
		                                      "instead", f[i].found ? NULL : f[i].instead));
	cli_print(json_pack("{s:b, s:o}", "ok", ok, "features", list));
}

int verb_check(const struct cli *cli)
{
	struct vm_feature f[FEATURES_MAX];
	size_t n = find_features(f);
	g_autofree char *names = missing(f, n);
	if (cli->json)
		print_json(f, n, !names);
	else
		print_table(f, n);
	if (names)
		fprintf(stderr, "virtcft: this host cannot run VMs: %s\n", names);
	return names ? CLI_FAILED : CLI_OK;
}
