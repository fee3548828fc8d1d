/* verb-down.c - virtcft down: end the cluster on all hosts. */
#include "cli/control-client.h"
#include "cli/verbs.h"

#include <stdio.h>

int verb_down(const struct cli *cli)
{
	GError *error = NULL;
	json_t *answer = control_call(cli->socket, json_pack("{s:s}", "verb", "down"), NULL, NULL, &error);
	if (!answer)
		return cli_fail(cli, error);
	if (cli->json) {
		cli_print(answer);
		return CLI_OK;
	}
	puts("the cluster has ended");
	json_decref(answer);
	return CLI_OK;
}
