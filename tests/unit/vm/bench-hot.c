/* bench-hot.c - what checkpoints cost a guest that writes the same pages all the time, with hot pages (track-hot.h) and without. No test: figures.
 *
 *   bench-hot PAGES INTERVAL_MS TURNS
 *
 * In each turn one guest with the rule, then one without it; in each, phases alone and captured alternate. Captures only: nothing is sent anywhere.
 * Work is counted by the host's clock, and as the share of the time in which the guest was not paused, times the share of QEMU's CPU time that
 * was not the kernel's, against that when alone: that holds on a machine whose other work makes the clock useless. Prints a line for each phase and, at
 * the end, medians. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PHASE (2 * NSEC_PER_SEC)
#define PHASES 4
#define ROOM 4096

struct figures { double share[256], cpu_share[256], faults[256], pause[ROOM], scan[ROOM], pages[ROOM]; size_t shares, captures; };

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *value, size_t n)
{
	qsort(value, n, sizeof *value, compare_doubles);
	return n ? value[n / 2] : 0;
}

/* A moment of the guest: how many pages it has written, when that was, and what QEMU has had of page faults and of CPU time (ticks). */
struct moment { uint64_t pages, faults, user, kernel; nsec_t clock; };

/* Fields 10, 14 and 15 of proc_pid_stat(5); the name in field 2 has no spaces. */
static void look_at_process(pid_t pid, struct moment *m)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid), *text = NULL;
	g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
	g_auto(GStrv) field = g_strsplit(text, " ", 16);
	m->faults = g_ascii_strtoull(field[9], NULL, 10);
	m->user = g_ascii_strtoull(field[13], NULL, 10);
	m->kernel = g_ascii_strtoull(field[14], NULL, 10);
}

static struct moment look(struct guest *g)
{
	guest_forget(g);
	g_autofree char *said = guest_expect(g, "memwriter ok pages=");
	struct moment m = { .pages = g_ascii_strtoull(said, NULL, 10), .clock = clock_now() };
	look_at_process(vmm_qemu.pid(g->vm), &m);
	return m;
}

/* Pages a second; the guest's part of QEMU's CPU time; faults in all. */
struct rate { double clock, guest, faults; };

static struct rate phase(struct guest *g)
{
	struct moment first = look(g), last = first;
	while (last.clock < first.clock + PHASE)
		last = look(g);
	double user = (double)(last.user - first.user), kernel = (double)(last.kernel - first.kernel);
	return (struct rate){ (double)(last.pages - first.pages) * 1e9 / (double)(last.clock - first.clock), user / (user + kernel),
		              (double)(last.faults - first.faults) };
}

static void note(struct figures *f, const struct capture *c)
{
	if (f->captures == ROOM)
		return;
	f->pause[f->captures] = (double)c->pause / 1e3;
	f->scan[f->captures] = (double)c->scan / 1e3;
	f->pages[f->captures++] = (double)c->ram.count;
}

struct along { struct guest *guest; nsec_t interval; struct figures *figures; bool stop; };

static gpointer capture_all_along(gpointer user)
{
	struct along *a = user;
	struct capture c = { 0 };
	for (nsec_t next = clock_now(); !__atomic_load_n(&a->stop, __ATOMIC_ACQUIRE); next += a->interval) {
		guest_capture(a->guest, &c, NULL, NULL);
		note(a->figures, &c);
		g_usleep((gulong)MAX((next + a->interval - clock_now()) / NSEC_PER_USEC, 0)); /* the interval */
	}
	capture_free(&c);
	return NULL;
}

/* Of the pauses from capture `first` on. */
static double median_from(const struct figures *f, size_t first)
{
	g_autofree double *copy = g_memdup2(f->pause + first, (f->captures - first) * sizeof *copy);
	return median(copy, f->captures - first);
}

static struct rate phase_captured(struct guest *g, nsec_t interval, struct figures *f, double *ret_running)
{
	struct along a = { g, interval, f, false };
	GThread *thread = g_thread_new("captures", capture_all_along, &a);
	g_free(guest_expect(g, "memwriter ok"));
	size_t before = f->captures;
	struct rate captured = phase(g);
	captured.faults /= (double)MAX(f->captures - before, 1);
	*ret_running = 1 - median_from(f, before) * 1e3 / (double)interval;
	__atomic_store_n(&a.stop, true, __ATOMIC_RELEASE);
	g_thread_join(thread);
	return captured;
}

static void turn(const char *run, nsec_t interval, bool hot, struct figures *f)
{
	struct guest g = guest_new(run);
	g.spec.hot_pages = hot;
	g.spec.verify = false;
	guest_boot(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	struct rate alone = phase(&g);
	for (unsigned i = 0; i < PHASES; i++) {
		double running;
		struct rate captured = phase_captured(&g, interval, f, &running), after = phase(&g);
		f->share[f->shares] = captured.clock / ((alone.clock + after.clock) / 2);
		f->cpu_share[f->shares] = captured.guest / ((alone.guest + after.guest) / 2) * running;
		f->faults[f->shares++] = captured.faults;
		printf("hot pages %-3s  guest's part of CPU time: alone %.3f, captured %.3f, alone %.3f; running %.3f; %.0f faults an epoch\n", hot ? "on" : "off",
		       alone.guest, captured.guest, after.guest, running, captured.faults);
		alone = after;
	}
	fflush(stdout);
	guest_stop(&g);
}

static void say(const char *what, struct figures *f)
{
	printf("hot pages %-3s  work of unprotected: %.3f (clock), %.3f (CPU time); %.0f faults an epoch; pause %.0f us, scan %.0f us, %.0f pages "
	       "(medians, %zu captures)\n", what, median(f->share, f->shares), median(f->cpu_share, f->shares), median(f->faults, f->shares),
	       median(f->pause, f->captures), median(f->scan, f->captures), median(f->pages, f->captures), f->captures);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: bench-hot PAGES INTERVAL_MS TURNS\n");
		return 2;
	}
	static struct figures on, off;
	g_autofree char *run = g_strdup_printf("memwriter+%s+%s", atoi(argv[1]) ? "0" : "1", atoi(argv[1]) ? argv[1] : "1");
	nsec_t interval = atoi(argv[2]) * NSEC_PER_MSEC;
	for (int i = 0; i < MIN(atoi(argv[3]), 60); i++) {
		turn(run, interval, true, &on);
		turn(run, interval, false, &off);
	}
	say("on", &on);
	say("off", &off);
	return 0;
}
