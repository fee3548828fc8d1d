/* fuzz-config-agent.c - whatever a virtcftd.yaml holds: settings that can be used, or an error with file and line. */
#include "base/config.h"
#include "fuzz.h"

#include <arpa/inet.h>

static void check(const struct config_agent *a)
{
	struct in_addr numeric;
	demand(*a->name && g_utf8_validate(a->name, -1, NULL) && inet_pton(AF_INET, a->address, &numeric) == 1);
	demand(*a->run_dir == '/' && *a->state_dir == '/' && *a->ram_dir == '/' && *a->plugin_dir);
	demand(!strcmp(a->group, "local") || !strcmp(a->group, "corosync"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	GError *error = NULL;
	struct config_agent *a = config_agent_parse((const char *)data, n, "v.yaml", &error);
	demand((a == NULL) == (error != NULL));
	if (a)
		check(a);
	else
		demand(g_str_has_prefix(error->message, "v.yaml:") && g_utf8_validate(error->message, -1, NULL));
	config_agent_free(a);
	g_clear_error(&error);
	return 0;
}
