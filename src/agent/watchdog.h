/* watchdog.h - kill an agent whose loop hangs: a hung member would stop every commit (design section 5).
 *
 * A child process holds a pipe into which the loop writes a byte every WATCHDOG_BEAT_MS. None for WATCHDOG_PATIENCE_MS: SIGKILL to the
 * agent (its QEMU and nbdkit end with it). The child ends when the agent ends. */
#ifndef VCFT_AGENT_WATCHDOG_H
#define VCFT_AGENT_WATCHDOG_H

#include <stdbool.h>

#define WATCHDOG_BEAT_MS 200
#define WATCHDOG_PATIENCE_MS 1900

/* Fork the child: call before any thread exists. False: errno says why. */
bool watchdog_start(void);
/* From now on the loop beats. */
void watchdog_attach(void);
/* A beat within a long piece of work of the loop, each step of which is bounded. No effect without a watchdog. */
void watchdog_beat(void);

#endif
