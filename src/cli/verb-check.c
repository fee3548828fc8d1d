/* verb-check.c - virtcft check: what works on this host, what is missing, what is used instead. Asks no agent. */
#include "cli/table.h"
#include "cli/verbs.h"

#include "base/config.h"
#include "base/tls.h"
#include "group/group.h"
#include "vm/vmm.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define OWN_FEATURES 5    /* beside the VM's side */
#define FEATURES_MAX (OWN_FEATURES + VM_FEATURES_MAX)
#define WARN_DAYS 30      /* before the certificate ends */

/* What the agent would do with its settings; *ret_days: until its certificate ends. */
static void find_tls(const struct config_agent *config, struct vm_feature *out, gint64 *ret_days)
{
	g_autoptr(GError) error = NULL;
	struct tls_credentials *c = NULL;
	*out = (struct vm_feature){ .name = "tls" };
	*ret_days = G_MAXINT64;
	if (!strcmp(config->group, "local")) {
		out->instead = "not needed";
		g_strlcpy(out->detail, "group local: nothing listens", sizeof out->detail);
	} else if (!config->tls) {
		out->instead = "PLAIN TEXT: who reaches the ports can read guests and pose as a host";
		g_strlcpy(out->detail, "tls: off", sizeof out->detail);
	} else if ((c = tls_credentials_load(config->pki_dir, config->name, &error))) {
		out->found = true;
		*ret_days = (tls_credentials_end(c) - g_get_real_time() / G_USEC_PER_SEC) / 86400;
		g_snprintf(out->detail, sizeof out->detail, "certificate of %s, ends in %" G_GINT64_FORMAT " days", config->name, *ret_days);
	} else
		g_strlcpy(out->detail, error->message, sizeof out->detail);
	tls_credentials_free(c);
}

/* As whom QEMU and nbdkit run, and who may read status. */
static void find_user(struct config_agent *config, struct vm_feature *out)
{
	g_autoptr(GError) error = NULL;
	*out = (struct vm_feature){ .name = "user", .found = config_agent_identify(config, &error) };
	if (error)
		g_strlcpy(out->detail, error->message, sizeof out->detail);
	else
		g_snprintf(out->detail, sizeof out->detail, "QEMU and nbdkit run as user %u", (unsigned)config->identity.user);
}

/* *ret_config: as the agent would read them; with mistakes the defaults, so that the rest can still be looked at. */
static void find_settings(const char *file, struct vm_feature *out, struct config_agent **ret_config)
{
	g_autoptr(GError) error = NULL;
	*ret_config = config_agent_read(file, &error);
	*out = (struct vm_feature){ .name = "settings", .found = *ret_config != NULL };
	if (error)
		g_strlcpy(out->detail, error->message, sizeof out->detail);
	else
		g_snprintf(out->detail, sizeof out->detail, "host %s, group %s", (*ret_config)->name, (*ret_config)->group);
	if (!*ret_config)
		*ret_config = config_agent_parse("", 0, "", NULL);
}

/* What the agent needs itself, then the VM's side. */
static size_t find_features(const char *file, struct vm_feature out[static FEATURES_MAX], gint64 *ret_days)
{
	struct config_agent *config;
	find_settings(file, &out[0], &config);
	out[1] = (struct vm_feature){ .name = "root", .found = geteuid() == 0 };
	g_snprintf(out[1].detail, sizeof out[1].detail, "user id %u", (unsigned)geteuid());
	find_user(config, &out[2]);
	out[3] = (struct vm_feature){ .name = "corosync", .instead = strcmp(config->group, "corosync") ? "group local: this host alone" : NULL };
	out[3].found = group_corosync_probe(out[3].detail, sizeof out[3].detail);
	find_tls(config, &out[4], ret_days);
	struct vm_folders at = { config->ram_dir, config->plugin_dir };
	size_t n = vm_features(&at, out + OWN_FEATURES, FEATURES_MAX - OWN_FEATURES);
	config_agent_free(config);
	return OWN_FEATURES + n;
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
	gint64 days;
	size_t n = find_features(cli->config, f, &days);
	g_autofree char *names = missing(f, n);
	if (cli->json)
		print_json(f, n, !names);
	else
		print_table(f, n);
	if (days <= WARN_DAYS)
		fprintf(stderr, "virtcft: this host's certificate ends in %" G_GINT64_FORMAT " days: make a new one with virtcft pki host\n", days);
	if (names)
		fprintf(stderr, "virtcft: this host cannot run VMs: %s\n", names);
	return names ? CLI_FAILED : CLI_OK;
}
