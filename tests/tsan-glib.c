/* tsan-glib.c - GLib's mutexes and conditions over pthreads, for builds with the thread sanitizer only.
 *
 * GLib's own are futexes in a library that is not instrumented: the sanitizer does not see them and finds races everywhere. These take their place
 * by their names; each GMutex and GCond points to a pthread object that is made at its first use and kept. */
#include <glib.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t *mutex_of(GMutex *m)
{
	pthread_mutex_t *p = __atomic_load_n((pthread_mutex_t **)&m->p, __ATOMIC_ACQUIRE), *none = NULL;
	if (p)
		return p;
	p = malloc(sizeof *p);
	pthread_mutex_init(p, NULL);
	if (__atomic_compare_exchange_n((pthread_mutex_t **)&m->p, &none, p, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return p;
	free(p);
	return none;
}

static pthread_cond_t *cond_of(GCond *c)
{
	pthread_cond_t *p = __atomic_load_n((pthread_cond_t **)&c->p, __ATOMIC_ACQUIRE), *none = NULL;
	pthread_condattr_t monotonic;
	if (p)
		return p;
	p = malloc(sizeof *p);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(p, &monotonic);
	if (__atomic_compare_exchange_n((pthread_cond_t **)&c->p, &none, p, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return p;
	free(p);
	return none;
}

void g_mutex_init(GMutex *m) { m->p = NULL; }
void g_mutex_clear(GMutex *m) { free(m->p); }
void g_mutex_lock(GMutex *m) { pthread_mutex_lock(mutex_of(m)); }
void g_mutex_unlock(GMutex *m) { pthread_mutex_unlock(mutex_of(m)); }
gboolean g_mutex_trylock(GMutex *m) { return pthread_mutex_trylock(mutex_of(m)) == 0; }
void g_cond_init(GCond *c) { c->p = NULL; }
void g_cond_clear(GCond *c) { free(c->p); }
void g_cond_wait(GCond *c, GMutex *m) { pthread_cond_wait(cond_of(c), mutex_of(m)); }
void g_cond_signal(GCond *c) { pthread_cond_signal(cond_of(c)); }
void g_cond_broadcast(GCond *c) { pthread_cond_broadcast(cond_of(c)); }

gboolean g_cond_wait_until(GCond *c, GMutex *m, gint64 end)
{
	struct timespec until = { .tv_sec = end / 1000000, .tv_nsec = end % 1000000 * 1000 };
	return pthread_cond_timedwait(cond_of(c), mutex_of(m), &until) != ETIMEDOUT;
}
