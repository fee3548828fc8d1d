/* verb-pki.c - virtcft pki: a certificate authority of the cluster's own and its hosts' certificates, for those who have none (base/pki.h). Asks
 * no agent. */
#include "cli/verbs.h"

#include "base/pki.h"

#include <stdio.h>
#include <string.h>

static void said(const struct cli *cli, const char *what, const char *path, gint64 end)
{
	g_autoptr(GDateTime) t = g_date_time_new_from_unix_utc(end);
	g_autofree char *day = g_date_time_format(t, "%Y-%m-%d");
	if (cli->json)
		cli_print(json_pack("{s:b, s:s, s:s, s:s}", "ok", 1, "made", what, "path", path, "until", day));
	else
		printf("%s: %s, valid until %s\n", path, what, day);
}

static int init(const struct cli *cli, const char *folder)
{
	GError *error = NULL;
	gint64 end;
	if (!pki_make_ca(folder, pki_term_now(PKI_CA_DAYS), cli->replace, &end, &error))
		return cli_fail(cli, error);
	said(cli, "CA (keep ca-key.pem where no host can read it)", folder, end);
	return CLI_OK;
}

static int hosts(const struct cli *cli, const char *folder, char **names)
{
	GError *error = NULL;
	gint64 end;
	for (; *names; names++) {
		g_autofree char *own = g_build_filename(folder, *names, NULL);
		if (!pki_make_host(folder, *names, pki_term_now(PKI_HOST_DAYS), cli->replace, &end, &error))
			return cli_fail(cli, error);
		said(cli, "ca.pem, cert.pem and key.pem for the host's pki_dir", own, end);
	}
	return CLI_OK;
}

int verb_pki(const struct cli *cli)
{
	char **a = cli->arguments;
	if (!strcmp(a[0], "init") && !a[2])
		return init(cli, a[1]);
	if (!strcmp(a[0], "host") && a[2])
		return hosts(cli, a[1], a + 2);
	fprintf(stderr, "virtcft: expected: virtcft pki init DIR, or virtcft pki host DIR NAME...; see virtcft --help\n");
	return CLI_USAGE;
}
