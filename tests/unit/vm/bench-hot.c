/* bench-hot.c - what checkpoints cost a guest that writes the same pages all the time, with hot pages (track-hot.h) and without. No test: figures.
 *
 *   bench-hot PAGES INTERVAL_MS TURNS
 *
 * In each turn the same guest runs alone and captured, then another one with the rule turned off; each phase is so many seconds of the host's
 * clock. Captures only: nothing is sent anywhere. Prints a line for each turn and, at the end, medians. Work is counted by the host's clock, and by
 * the CPU time that QEMU had, times the share of the time in which the guest was not paused: the second one holds on a machine that has other
 * work as well. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PHASE (4 * NSEC_PER_SEC)
#define ROOM 4096

struct figures { double share[64], cpu_share[64], pause[ROOM], scan[ROOM], pages[ROOM]; size_t shares, captures; };

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

/* A moment of the guest: how many pages it has written, and when that was by either clock. */
struct moment { uint64_t pages; nsec_t clock, cpu; };

static nsec_t cpu_of(pid_t pid)
{
	clockid_t clock;
	struct timespec t;
	g_assert_cmpint(clock_getcpuclockid(pid, &clock), ==, 0);
	g_assert_cmpint(clock_gettime(clock, &t), ==, 0);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

static struct moment look(struct guest *g)
{
	guest_forget(g);
	g_autofree char *said = guest_expect(g, "memwriter ok pages=");
	return (struct moment){ g_ascii_strtoull(said, NULL, 10), clock_now(), cpu_of(vmm_qemu.pid(g->vm)) };
}

/* Pages a second of either clock. */
struct rate { double clock, cpu; };

static struct rate phase(struct guest *g)
{
	struct moment first = look(g), last = first;
	while (last.clock < first.clock + PHASE)
		last = look(g);
	double pages = (double)(last.pages - first.pages) * 1e9;
	return (struct rate){ pages / (double)(last.clock - first.clock), pages / (double)(last.cpu - first.cpu) };
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

static void turn(const char *run, nsec_t interval, bool hot, struct figures *f)
{
	struct guest g = guest_new(run);
	g.spec.hot_pages = hot;
	g.spec.verify = false;
	guest_boot(&g);
	g_free(guest_expect(&g, "memwriter ok"));
	struct rate alone = phase(&g);
	struct along a = { &g, interval, f, false };
	GThread *thread = g_thread_new("captures", capture_all_along, &a);
	g_free(guest_expect(&g, "memwriter ok"));
	size_t before = f->captures;
	struct rate captured = phase(&g);
	double running = 1 - median_from(f, before) * 1e3 / (double)interval;
	__atomic_store_n(&a.stop, true, __ATOMIC_RELEASE);
	g_thread_join(thread);
	struct rate after = phase(&g);
	f->share[f->shares] = captured.clock / ((alone.clock + after.clock) / 2);
	f->cpu_share[f->shares++] = captured.cpu / ((alone.cpu + after.cpu) / 2) * running;
	printf("hot pages %-3s  pages per s of QEMU's CPU time: alone %8.0f  captured %8.0f  alone %8.0f; running %.3f\n", hot ? "on" : "off",
	       alone.cpu, captured.cpu, after.cpu, running);
	fflush(stdout);
	guest_stop(&g);
}

static void say(const char *what, struct figures *f)
{
	double share = median(f->share, f->shares), cpu = median(f->cpu_share, f->shares), pause = median(f->pause, f->captures);
	printf("hot pages %-3s  work of unprotected: %.3f (clock), %.3f (CPU time); pause %.0f us, scan %.0f us, %.0f pages (medians, %zu captures)\n", what, share, cpu, pause,
	       median(f->scan, f->captures), median(f->pages, f->captures), f->captures);
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
