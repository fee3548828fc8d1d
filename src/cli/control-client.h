/* control-client.h - the command's side of the agent's control socket: one JSON object a line each way (src/agent/control.h). */
#ifndef VCFT_CLI_CONTROL_CLIENT_H
#define VCFT_CLI_CONTROL_CLIENT_H

#include <glib.h>
#include <jansson.h>

/* Called for each line before the answer: {"progress":...} or an event. Borrowed for the call. */
typedef void (*control_listener)(json_t *object, void *user);

/* Send request (its reference is taken) and wait for the answer, the first object with "ok". NULL with error: no agent, not ok. Blocks. */
json_t *control_call(const char *socket_path, json_t *request, control_listener listener, void *user, GError **error);
/* Connect to a Unix stream socket; -1 with error. */
int control_connect(const char *path, GError **error);

#endif
