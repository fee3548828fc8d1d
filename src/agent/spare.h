/* spare.h - give back what malloc keeps after a peak.
 *
 * A VM's first checkpoint and a backup that is filled pass through queues of some MiB of small messages, in several threads. All of them are freed, but
 * malloc keeps them: an arena is cut at its end only, and something small is always left there. malloc_trim() finds what is free in between.
 *
 * SP1 It is asked for when there was a peak since the last time (SPARE_LEAST between the least and the most memory of this process's own) and memory has not
 *     grown in the last SPARE_CALM looks by more than SPARE_MORE: never while VMs start, when a machine is busiest. It holds each arena's lock for as long
 *     as it takes (some 0.1 ms a MiB), so it is not the loop that does it. */
#ifndef VCFT_AGENT_SPARE_H
#define VCFT_AGENT_SPARE_H

#include <stdbool.h>

#define SPARE_TICK_MS 2000
#define SPARE_CALM 5u
#define SPARE_LEAST (8u << 20)
#define SPARE_MORE (1u << 20)      /* what little comes and goes */

/* From now on the loop looks at it every SPARE_TICK. */
void spare_attach(void);
/* One look; whether memory is given back now, by a thread. */
bool spare_look(void);

#endif
