/* spare.c - see spare.h. */
#include "agent/spare.h"

#include <glib.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

static gint busy;                    /* a thread gives back */
static uint64_t kept, most;          /* bytes: the least and the most since memory was last given back */
static unsigned calm;                /* looks since it grew */

/* Bytes of this process that are no file's: images are files. 0: it cannot be told. */
static uint64_t own_memory(void)
{
	unsigned long long resident = 0, of_files = 0;
	FILE *f = fopen("/proc/self/statm", "re");
	if (!f)
		return 0;
	if (fscanf(f, "%*u %llu %llu", &resident, &of_files) != 2)
		resident = of_files = 0;
	fclose(f);
	return resident > of_files ? (resident - of_files) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

static gpointer give_back(gpointer data)
{
	malloc_trim(0);
	g_atomic_int_set(&busy, 0);
	return data;
}

/* SP1 */
bool spare_look(void)
{
	if (g_atomic_int_get(&busy))
		return false;
	uint64_t now = own_memory();
	if (!now)
		return false;
	bool grows = now > most + SPARE_MORE;
	calm = grows ? 0 : calm + 1;
	most = grows ? now : most;
	kept = MIN(kept, now);
	bool over = calm >= SPARE_CALM && most - kept >= SPARE_LEAST;
	if (!over)
		return false;
	kept = UINT64_MAX;   /* the next look tells */
	most = 0;
	g_atomic_int_set(&busy, 1);
	GThread *thread = g_thread_try_new("spare", give_back, NULL, NULL);
	if (!thread)
		g_atomic_int_set(&busy, 0);
	else
		g_thread_unref(thread);
	return thread != NULL;
}

static gboolean on_tick(gpointer data)
{
	(void)data;
	spare_look();
	return G_SOURCE_CONTINUE;
}

void spare_attach(void)
{
	kept = most = own_memory();
	g_timeout_add_full(G_PRIORITY_LOW, SPARE_TICK_MS, on_tick, NULL, NULL);
}
