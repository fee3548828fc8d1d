/* shortage.c - see shortage.h. */
#include "agent/shortage.h"

#include "agent/agent-private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS 1000
#define LATE NSEC_PER_SEC      /* how much longer than the interval a commit may take before it is said */

static const struct { const char *name; nsec_t hold; } kinds[SHORT_END] = {
	[SHORT_DISK] = { "disk", 3 * NSEC_PER_SEC },
	[SHORT_ROOM] = { "room", 10 * NSEC_PER_SEC },
	[SHORT_MEMORY] = { "memory", 12 * NSEC_PER_SEC },     /* whoever was refused comes again after at most 8 s */
	[SHORT_BACKUP] = { "backup", 12 * NSEC_PER_SEC },
	[SHORT_TIME] = { "time", 3 * NSEC_PER_SEC },
	[SHORT_OUTPUT] = { "output", 3 * NSEC_PER_SEC },
	[SHORT_DESCRIPTORS] = { "descriptors", 3 * NSEC_PER_SEC },
};

struct shortages {
	guint tick;
	struct { bool on; nsec_t met; char *text; } of[SHORT_END];
	struct sink_memory memory;         /* as of the last tick */
	struct net_stats net;
};

void shortage_note(struct agent *a, enum shortage which, const char *text)
{
	struct shortages *s = a->shortages;
	if (!s)
		return;
	s->of[which].met = clock_now();
	g_free(s->of[which].text);
	s->of[which].text = g_utf8_make_valid(text, -1);
	if (s->of[which].on)
		return;
	s->of[which].on = true;
	g_message("short of %s: %s", kinds[which].name, text);
	events_say(a->events, "shortage", json_pack("{s:s, s:s}", "short", kinds[which].name, "text", s->of[which].text));
}

static void notef(struct agent *a, enum shortage which, const char *format, ...) G_GNUC_PRINTF(3, 4);
static void notef(struct agent *a, enum shortage which, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *text = g_strdup_vprintf(format, args);
	va_end(args);
	shortage_note(a, which, text);
}

/* ---- what is looked at each second ---- */

static void look_at_memory(struct agent *a)
{
	struct sink_memory now, *last = &a->shortages->memory;
	sink_memory(a->sink, &now);
	if (now.refused_memory != last->refused_memory)
		notef(a, SHORT_MEMORY, "images and stages have reached backup_memory, %" PRIu64 " MiB: a stream was refused", a->config->backup_memory >> 20);
	else if (now.refused_space != last->refused_space)
		notef(a, SHORT_MEMORY, "no space for an image under %s or %s: a stream was refused", a->config->ram_dir, a->config->state_dir);
	if (now.damaged != last->damaged)   /* no shortage, but this is who sees it */
		events_say(a->events, "image-damaged", json_pack("{s:I}", "images", (json_int_t)(now.damaged - last->damaged)));
	*last = now;
}

static void look_at_output(struct agent *a)
{
	struct net_stats now, *last = &a->shortages->net;
	net_stats(a->net, &now);
	if (now.dropped_full > last->dropped_full)
		notef(a, SHORT_OUTPUT, "%" PRIu64 " frames dropped for full queues (held_memory, queue_memory)", now.dropped_full);
	else if (now.dropped_down > last->dropped_down)
		notef(a, SHORT_OUTPUT, "%" PRIu64 " frames dropped: an uplink is down", now.dropped_down);
	*last = now;
}

static void look_at_descriptors(struct agent *a)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	else if (errno == EMFILE || errno == ENFILE)
		shortage_note(a, SHORT_DESCRIPTORS, "no file descriptors are left");
}

static void look_at_time(struct agent *a)
{
	struct epoch_view view;
	epoch_view(a->core, &view);
	if (!a->cluster || view.state != EPOCH_RUNNING)
		return;
	bool open = epoch_cmp(view.begun, view.committed) > 0 && !a->checkpoint.failed;
	nsec_t took = open ? MAX(a->commit_time, clock_now() - a->checkpoint.begun) : a->commit_time;
	if (took > a->cluster->interval + LATE)
		notef(a, SHORT_TIME, "commits take %.1f s, the interval is %.1f s", (double)took / NSEC_PER_SEC, (double)a->cluster->interval / NSEC_PER_SEC);
}

static void look_at_disks(struct agent *a)
{
	for (uint32_t i = 0; i < VCFT_VM_MAX; i++)
		if (agent_has(a, i) && a->stats[i].stand == VM_WAITS)
			notef(a, SHORT_DISK, "%s waits: no space for its disk under %s", agent_vm_name(a, (struct vm_id){ i }), a->config->state_dir);
}

/* B2. Our own STATS comes back to us, so what was last said is known; without VMs in it, it says nothing else. */
static void tell_others(struct agent *a)
{
	uint32_t mask = shortages_mask(a);
	if (mask == a->peers[a->self.n].shortages || host_count(a->members) < 2)
		return;
	g_autofree struct message *m = g_new0(struct message, 1);
	m->type = MESSAGE_STATS;
	m->generation = a->generation;
	m->shortages = mask;
	agent_mcast(a, m);
}

static gboolean on_tick(gpointer data)
{
	struct agent *a = data;
	struct shortages *s = a->shortages;
	look_at_memory(a);
	look_at_output(a);
	look_at_descriptors(a);
	look_at_time(a);
	look_at_disks(a);
	for (unsigned i = 0; i < SHORT_END; i++)
		if (s->of[i].on && clock_now() - s->of[i].met > kinds[i].hold) {
			s->of[i].on = false;
			events_say(a->events, "shortage-over", json_pack("{s:s}", "short", kinds[i].name));
		}
	tell_others(a);
	return G_SOURCE_CONTINUE;
}

/* ---- what is said ---- */

uint32_t shortages_mask(const struct agent *a)
{
	uint32_t mask = 0;
	for (unsigned i = 0; i < SHORT_END; i++)
		mask |= (uint32_t)a->shortages->of[i].on << i;
	return mask;
}

json_t *shortages_names(uint32_t mask)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < SHORT_END; i++)
		if (mask >> i & 1)
			json_array_append_new(list, json_string(kinds[i].name));
	return list;
}

json_t *shortages_json(const struct agent *a)
{
	json_t *list = json_array();
	for (unsigned i = 0; i < SHORT_END; i++)
		if (a->shortages->of[i].on)
			json_array_append_new(list, json_pack("{s:s, s:s}", "short", kinds[i].name, "text", a->shortages->of[i].text));
	return list;
}

struct shortages *shortages_new(struct agent *a)
{
	struct shortages *s = g_new0(struct shortages, 1);
	s->tick = g_timeout_add(TICK_MS, on_tick, a);
	return s;
}

void shortages_free(struct shortages *s)
{
	g_source_remove(s->tick);
	for (unsigned i = 0; i < SHORT_END; i++)
		g_free(s->of[i].text);
	g_free(s);
}
