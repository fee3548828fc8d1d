/* verbs.h - what a verb of virtcft gets and gives. One file a verb; the table is verbs.def. */
#ifndef VCFT_CLI_VERBS_H
#define VCFT_CLI_VERBS_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#define CLI_SOCKET "/run/virtcft/control.sock"
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };      /* exit codes */

/* The command line, taken apart. */
struct cli {
	char *socket;        /* --socket */
	gboolean json;       /* --json: one JSON object a line, nothing else on stdout */
	gboolean follow;     /* events --follow */
	char *bare;          /* checkpoint --bare VM */
	char *config;        /* check --config; NULL: the default file */
	gboolean replace;    /* pki --replace */
	char **arguments;    /* behind the verb, NULL-terminated; as many as verbs.def allows */
};

/* Each returns an exit code and has said what went wrong. */
#define VERB(name, arguments, least, most, help) int verb_##name(const struct cli *cli);
#include "cli/verbs.def"
#undef VERB

/* Say why on stderr, and with --json as {"ok":false,"error":...} on stdout; takes error. Returns CLI_FAILED. */
int cli_fail(const struct cli *cli, GError *error);
/* Print an object on a line of its own, at once. Takes the reference. */
void cli_print(json_t *object);

#endif
