/* shortage.h - what this host is short of, in words: for status, events and the other hosts.
 *
 *   whoever meets it ──shortage_note──► on: event `shortage` ──nobody met it for a while──► off: event `shortage-over`
 *   tick, each second: counters of sink and switch, descriptors, the time that commits take
 *
 * B1 A shortage is on from when it is met until it has not been met for its time: nothing has to be told that it is over.
 * B2 The other hosts are told within a tick, whether checkpoints are committed or not: often it is why they are not. Loop's thread. */
#ifndef VCFT_AGENT_SHORTAGE_H
#define VCFT_AGENT_SHORTAGE_H

#include <jansson.h>
#include <stdint.h>

struct agent;
struct shortages;

enum shortage {
	SHORT_DISK,          /* space for what VMs here write */
	SHORT_ROOM,          /* room for a VM's memory on this host */
	SHORT_MEMORY,        /* memory or space for other hosts' images */
	SHORT_BACKUP,        /* a backup of a VM of this host refuses, is too slow, or does not answer */
	SHORT_TIME,          /* commits take longer than the interval */
	SHORT_OUTPUT,        /* frames are dropped: a queue is full or an uplink is down */
	SHORT_DESCRIPTORS,
	SHORT_END
};

struct shortages *shortages_new(struct agent *agent);
void shortages_free(struct shortages *shortages);
/* It was met just now. */
void shortage_note(struct agent *agent, enum shortage which, const char *text);
/* A bit for each that is on. */
uint32_t shortages_mask(const struct agent *agent);
/* Those of a mask by name, a list. */
json_t *shortages_names(uint32_t mask);
/* This host's, with their texts: [{short, text}]. */
json_t *shortages_json(const struct agent *agent);

#endif
