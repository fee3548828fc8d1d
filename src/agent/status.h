/* status.h - the object that `virtcft status --json` prints (docs/design.md section 9). Loop's thread. */
#ifndef VCFT_AGENT_STATUS_H
#define VCFT_AGENT_STATUS_H

#include "agent/agent.h"

#include <jansson.h>

/* A new reference. */
json_t *status_json(const struct agent *agent);

#endif
