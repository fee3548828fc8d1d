/* sim.c - the simulator's command: runs schedules, one for each seed, and says which broke what; with --mutants, which seed finds which deliberate fault.
 *
 * Usage: sim [--runs N] [--seed N] [--trace] [--report FILE] [--mutants] [--mutant NAME] [--forever]. The last line is `N schedules, N violations`; the exit
 * code is 1 if there were any, with --trace as without, 2 if the call was wrong. */
#include "sim.h"

#include "base/must.h"
#include "core/mutant.h"

#include <glib.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#define EVENTS_MAX 400000u           /* a run that needs more goes in circles */
#define QUIET (250 * MSEC)           /* at most this long until all is well again */

bool sim_tracing;
static struct world world;

/* ---- memory ---- */

#define CHUNK (4u << 20)

static struct { char **chunk; size_t count, now, used; } arena;

void *sim_alloc(size_t n)
{
	n = (n + 15) & ~(size_t)15;
	if (arena.count == 0 || arena.used + n > CHUNK) {
		if (arena.count)
			arena.now++;
		if (arena.now == arena.count) {
			arena.chunk = g_renew(char *, arena.chunk, ++arena.count);
			arena.chunk[arena.now] = g_malloc(CHUNK);
		}
		arena.used = 0;
	}
	void *p = arena.chunk[arena.now] + arena.used;
	arena.used += n;
	return memset(p, 0, n);
}

void list_add(struct list *l, void *p)
{
	if (l->count == l->room) {
		uint32_t room = l->room ? 2 * l->room : 8;
		void **at = sim_alloc(room * sizeof *at);
		if (l->count)
			memcpy(at, l->at, l->count * sizeof *at);
		l->at = at;
		l->room = room;
	}
	l->at[l->count++] = p;
}

void *list_take(struct list *l)
{
	if (l->count == 0)
		return NULL;
	void *first = l->at[0];
	memmove(l->at, l->at + 1, --l->count * sizeof *l->at);
	return first;
}

struct note *note_new(struct host *h)
{
	struct note *n = sim_alloc(sizeof *n);
	n->host = h;
	n->life = h->life;
	return n;
}

/* ---- time and chance ---- */

uint64_t sim_random(struct world *w, uint64_t below)
{
	w->random += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = w->random;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return below ? (z ^ (z >> 31)) % below : 0;
}

nsec_t sim_between(struct world *w, nsec_t least, nsec_t most)
{
	return least + (nsec_t)sim_random(w, (uint64_t)(most > least ? most - least : 0) + 1);
}

bool sim_chance(struct world *w, unsigned thousandth) { return thousandth && sim_random(w, 1000) < thousandth; }

static bool is_before(const struct event *a, const struct event *b) { return a->at < b->at || (a->at == b->at && a->order < b->order); }

static void add_event(struct world *w, struct event e)
{
	if (w->heap_count == w->heap_room) {
		w->heap_room = w->heap_room ? 2 * w->heap_room : 1024;
		w->heap = g_renew(struct event, w->heap, w->heap_room);
	}
	uint32_t i = w->heap_count++;
	for (; i && is_before(&e, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
		w->heap[i] = w->heap[(i - 1) / 2];
	w->heap[i] = e;
}

void sim_after(struct world *w, nsec_t delay, void (*fire)(struct world *, void *), void *argument)
{
	add_event(w, (struct event){ w->now + delay, w->event_order++, NULL, fire, argument });
}

void sim_at(struct host *h, nsec_t delay, void (*fire)(struct world *, void *), void *argument)
{
	struct world *w = h->world;
	add_event(w, (struct event){ w->now + delay, w->event_order++, h, fire, argument });
}

static struct event take_event(struct world *w)
{
	struct event first = w->heap[0], last = w->heap[--w->heap_count];
	uint32_t i = 0;
	for (;;) {
		uint32_t child = 2 * i + 1;
		if (child + 1 < w->heap_count && is_before(&w->heap[child + 1], &w->heap[child]))
			child++;
		if (child >= w->heap_count || !is_before(&w->heap[child], &last))
			break;
		w->heap[i] = w->heap[child];
		i = child;
	}
	w->heap[i] = last;
	return first;
}

/* What comes for a host that is stopped waits, in the order in which it was sent: so nothing overtakes on a connection. */
static bool is_held(struct world *w, struct event e)
{
	if (!e.of || e.of->stopped_until <= e.at)
		return false;
	w->met.held++;
	e.at = e.of->stopped_until;
	add_event(w, e);
	return true;
}

/* ---- what is said ---- */

void sim_trace(struct world *w, const struct host *h, const char *format, ...)
{
	static const char *const states[] = { "EMPTY  ", "GATHER ", "PLACING", "RUNNING" };
	va_list args;
	printf("%9.3f ms  ", (double)w->now / MSEC);
	if (h)
		printf("host %u %s  ", h->id.n, h->up && h->core ? states[host_view(h).state] : "down   ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

_Noreturn void sim_violation(struct world *w, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(w->violation, sizeof w->violation, format, args);
	va_end(args);
	TRACE(w, NULL, "VIOLATION  %s", w->violation);
	longjmp(w->stop, 1);
}

/* In place of base/must.c: a broken rule ends the run, not the simulator. */
_Noreturn void must_fail(const char *rule, const char *condition, const char *file, int line)
{
	sim_violation(&world, "rule %s is broken: %s (%s:%d)", rule, condition, file, line);
}

/* ---- one run ---- */

static bool all_is_well(const struct world *w, struct epoch_id beyond)
{
	struct epoch_view first = { 0 };
	for (uint32_t x = 1; x <= w->plan.hosts; x++) {
		if (!w->host[x].up)
			return false;
		struct epoch_view v = host_view(&w->host[x]);
		if (x == 1)
			first = v;
		if (v.state != EPOCH_RUNNING || v.number.n != first.number.n || host_count(v.participants) != w->plan.hosts ||
		    epoch_cmp(v.committed, beyond) <= 0 || (!v.protected_ && w->plan.hosts > w->plan.backups) || epoch_cmp(v.released, beyond) <= 0)
			return false;
	}
	return true;
}

static struct epoch_id newest_committed(const struct world *w)
{
	struct epoch_id c = { 0 };
	for (uint32_t x = 1; x <= w->plan.hosts; x++)
		if (w->host[x].up && epoch_cmp(host_view(&w->host[x]).committed, c) > 0)
			c = host_view(&w->host[x]).committed;
	return c;
}

static void run_events(struct world *w)
{
	struct epoch_id at_heal = { 0 };
	bool healed = false;
	while (w->heap_count && w->events < EVENTS_MAX && w->now < w->plan.end + QUIET) {
		struct event e = take_event(w);
		w->now = e.at;
		w->events++;
		if (is_held(w, e))
			continue;
		e.fire(w, e.argument);
		if (w->quiet && !healed) {
			healed = true;
			at_heal = newest_committed(w);
		}
		if (healed && w->events % 64 == 0 && all_is_well(w, epoch_of(at_heal.n + 1)))
			return;
	}
	if (w->events >= EVENTS_MAX)
		sim_violation(w, "%" PRIu64 " events and no end", w->events);
	check_end(w);
}

static void world_begin(struct world *w, uint64_t seed)
{
	struct event *heap = w->heap;
	uint32_t room = w->heap_room;
	memset(w, 0, sizeof *w);
	arena.now = arena.used = 0;
	w->heap = heap;
	w->heap_room = room;
	w->seed = seed;
	w->random = seed * UINT64_C(0x2545f4914f6cdd1d) + 1;
	w->losses = ~UINT64_C(0);
	w->excused = true;   /* until an epoch is applied for the first time */
	for (uint32_t x = 0; x <= HOSTS; x++) {
		w->host[x].world = w;
		w->host[x].id.n = x;
	}
}

static void world_end(struct world *w)
{
	for (uint32_t x = 1; x <= HOSTS; x++)
		if (w->host[x].core) {
			epoch_free(w->host[x].core);
			uplink_close(&w->host[x]);
		}
}

/* True: nothing was broken. */
static bool run(uint64_t seed)
{
	struct world *w = &world;
	world_begin(w, seed);
	if (setjmp(w->stop) == 0) {
		faults_plan(w);
		w->config = (struct epoch_config){ .vm_count = w->plan.vms, .backups = w->plan.backups, .interval = w->plan.interval, .patience = 10 * MSEC,
			                           .settle = sim_between(w, 1, 8 * MSEC), .retry = sim_between(w, 4 * MSEC, 20 * MSEC),
			                           .hold_when_degraded = w->plan.hold };
		TRACE(w, NULL, "seed %" PRIu64 ": %u hosts, %u VMs, %u backups, %u faults, interval %.1f ms%s", seed, w->plan.hosts, w->plan.vms, w->plan.backups,
		      w->plan.faults, (double)w->plan.interval / MSEC, w->plan.hold ? ", hold" : "");
		ring_start(w);
		uplink_outside(w);
		run_events(w);
	}
	world_end(w);
	return w->violation[0] == 0;
}

static void show(uint64_t seed)
{
	sim_tracing = true;
	run(seed);
	sim_tracing = false;
	fflush(stdout);
}

/* ---- mutants ---- */

#ifdef VCFT_MUTANTS
static uint64_t find_mutant(enum mutant m, uint64_t first, uint64_t runs)
{
	mutant_active = m;
	uint64_t seed = mutant_seed(m);
	bool found = !run(seed);
	for (uint64_t i = 0; !found && i < runs; i++)
		found = !run(seed = first + i);
	mutant_active = MUTANT_none;
	return found ? seed : 0;
}

static unsigned run_mutants(uint64_t first, uint64_t runs, FILE *report)
{
	unsigned missed = 0;
	printf("%-28s %-10s %s\n", "mutant", "seed", "what it breaks / what was seen");
	fprintf(report, "\"mutants\": [");
	for (int m = 1; m < MUTANT_COUNT; m++) {
		uint64_t seed = find_mutant((enum mutant)m, first, runs);
		char number[24] = "null";
		if (seed)
			snprintf(number, sizeof number, "%" PRIu64, seed);
		printf("%-28s %-10s %s\n%39s %s\n", mutant_name(m), seed ? number : "NOT CAUGHT", mutant_text(m), "", seed ? world.violation : "");
		fprintf(report, "%s{\"name\": \"%s\", \"caught_by_seed\": %s, \"seen\": \"%s\"}", m > 1 ? ", " : "", mutant_name(m), number,
		        seed ? world.violation : "");
		missed += seed == 0;
		fflush(stdout);
	}
	fprintf(report, "]");
	printf("%d mutants, %u not caught\n", MUTANT_COUNT - 1, missed);
	return missed;
}

static enum mutant mutant_by_name(const char *name)
{
	for (int m = 0; m < MUTANT_COUNT; m++)
		if (!strcmp(mutant_name(m), name))
			return m;
	return MUTANT_COUNT;
}
#endif

/* ---- main ---- */

static gint64 runs = -1, first = 1;
static gboolean tracing, mutants, forever;
static char *report_path, *mutant;

static const GOptionEntry options[] = {
	{ "runs", 0, 0, G_OPTION_ARG_INT64, &runs, "How many schedules (1000, with --trace 1); for --mutants: at most, for each", "N" },
	{ "seed", 0, 0, G_OPTION_ARG_INT64, &first, "The first seed (1)", "N" },
	{ "trace", 0, 0, G_OPTION_ARG_NONE, &tracing, "Say everything that happens", NULL },
	{ "forever", 0, 0, G_OPTION_ARG_NONE, &forever, "Go on until stopped, from a random seed", NULL },
	{ "mutants", 0, 0, G_OPTION_ARG_NONE, &mutants, "Switch on one deliberate fault after the other and find each", NULL },
	{ "mutant", 0, 0, G_OPTION_ARG_STRING, &mutant, "Switch on this deliberate fault", "NAME" },
	{ "report", 0, 0, G_OPTION_ARG_FILENAME, &report_path, "Write the figures there", "FILE" },
	{ NULL },
};

static struct { uint64_t events, commits, aborts, recoveries, releases, crashes, cuts, lost, frames; } total;
static struct met met;

static void add_up(const struct world *w)
{
	total.events += w->events, total.commits += w->count.commits, total.aborts += w->count.aborts, total.recoveries += w->count.recoveries;
	total.releases += w->count.releases, total.crashes += w->count.crashes, total.cuts += w->count.cuts, total.lost += w->count.lost;
	total.frames += w->count.frames;
	met.stopped += w->met.stopped, met.held += w->met.held, met.split += w->met.split, met.ended += w->met.ended, met.mute += w->met.mute;
	met.deaf += w->met.deaf, met.full += w->met.full, met.midway += w->met.midway, met.one_way += w->met.one_way, met.late += w->met.late, met.behind += w->met.behind;
}

static void progress(uint64_t done, gint64 started)
{
	double seconds = (double)(g_get_monotonic_time() - started) / 1e6;
	printf("%" PRIu64 " schedules, %.0f a second\n", done, (double)done / seconds);
	fflush(stdout);
}

static uint64_t run_all(uint64_t *ret_done, double *ret_seconds)
{
	gint64 started = g_get_monotonic_time();
	uint64_t violations = 0, done = 0;
	for (; forever || done < (uint64_t)runs; done++) {
		uint64_t seed = (uint64_t)first + done;
		if (forever && done && done % 10000 == 0)
			progress(done, started);
		sim_tracing = tracing;
		if (!run(seed)) {
			if (++violations <= 3 && !tracing)
				show(seed);
			printf("seed %" PRIu64 ": %s\n", seed, world.violation);
		}
		add_up(&world);
	}
	progress(done, started);
	*ret_done = done;
	*ret_seconds = (double)(g_get_monotonic_time() - started) / 1e6;
	return violations;
}

static FILE *open_report(void)
{
	FILE *f = fopen(report_path ? report_path : "/dev/null", "w");
	if (!f) {
		perror(report_path);
		exit(2);
	}
	return f;
}

static void finish_met(FILE *report)
{
	fprintf(report, ", \"met\": {\"stopped\": %" PRIu64 ", \"held\": %" PRIu64 ", \"split\": %" PRIu64 ", \"ended\": %" PRIu64 ", \"mute\": %" PRIu64
	        ", \"deaf\": %" PRIu64 ", \"one_way\": %" PRIu64 ", \"full\": %" PRIu64 ", \"midway\": %" PRIu64 ", \"late\": %" PRIu64 ", \"behind\": %" PRIu64 "}",
	        met.stopped, met.held, met.split, met.ended, met.mute, met.deaf, met.one_way, met.full, met.midway, met.late, met.behind);
	printf("%" PRIu64 " hosts stopped, %" PRIu64 " within a step, %" PRIu64 " events waited for them; %" PRIu64 " ended by watchdogs; %" PRIu64 " mute, %" PRIu64
	       " deaf, %" PRIu64 " times one way; full: %" PRIu64 " refused, %" PRIu64 " midway; %" PRIu64 " late answers; %" PRIu64 " went behind\n",
	       met.stopped, met.split, met.held, met.ended, met.mute, met.deaf, met.one_way, met.full, met.midway, met.late, met.behind);
}

static int finish(uint64_t done, uint64_t violations, double seconds, FILE *report)
{
	fprintf(report, "\"schedules_per_second\": %.0f, ", (double)done / seconds);
	fprintf(report, "\"schedules\": %" PRIu64 ", \"violations\": %" PRIu64 ", \"events\": %" PRIu64 ", \"recoveries\": %" PRIu64
	        ", \"commits\": %" PRIu64 ", \"aborts\": %" PRIu64 ", \"frames_released\": %" PRIu64 ", \"crashes\": %" PRIu64 ", \"cuts\": %" PRIu64,
	        done, violations, total.events, total.recoveries, total.commits, total.aborts, total.releases, total.crashes, total.cuts);
	finish_met(report);
	printf("%" PRIu64 " events, %" PRIu64 " frames, %" PRIu64 " released, %" PRIu64 " commits, %" PRIu64 " given up, %" PRIu64 " recoveries, %" PRIu64
	       " crashes, %" PRIu64 " cuts, %" PRIu64 " lost\n%" PRIu64 " schedules, %" PRIu64 " violations\n",
	       total.events, total.frames, total.releases, total.commits, total.aborts, total.recoveries, total.crashes, total.cuts, total.lost, done, violations);
	return violations ? 1 : 0;
}

int main(int argc, char **argv)
{
	g_autoptr(GOptionContext) context = g_option_context_new("- run the protocol through simulated faults");
	g_autoptr(GError) error = NULL;
	g_option_context_add_main_entries(context, options, NULL);
	if (!g_option_context_parse(context, &argc, &argv, &error)) {
		fprintf(stderr, "sim: %s\n", error->message);
		return 2;
	}
	if (runs < 0)
		runs = tracing ? 1 : 1000;
	mallopt(M_TRIM_THRESHOLD, 64 << 20);   /* hosts come and go by the million */
	mallopt(M_MMAP_THRESHOLD, 16 << 20);
	if (forever)
		first = (gint64)g_random_int() << 20;
	FILE *report = open_report();
	uint64_t done = 0, violations = 0;
	fprintf(report, "{");
#ifdef VCFT_MUTANTS
	if (mutant && (mutant_active = mutant_by_name(mutant)) == MUTANT_COUNT) {
		fprintf(stderr, "sim: no mutant is called %s\n", mutant);
		return 2;
	}
	if (mutants) {
		unsigned missed = run_mutants((uint64_t)first, (uint64_t)runs, report);
		fprintf(report, "}\n");
		fclose(report);
		return missed != 0;
	}
#else
	if (mutants || mutant) {
		fprintf(stderr, "sim: built without mutants; use sim-mutants\n");
		return 2;
	}
#endif
	double seconds;
	violations = run_all(&done, &seconds);
	int status = finish(done, violations, seconds, report);
	fprintf(report, "}\n");
	fclose(report);
	return status;
}
