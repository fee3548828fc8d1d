/* qmp.h - talk to QEMU: commands with a deadline, events as they come. Protocol: QEMU's docs/interop/qmp-spec.
 *
 * Q1 One command at a time. If its reply does not come in time, the command stays open; the next one must wait for it first (qmp_settle).
 * Q2 Every wait has a deadline: what comes too late is VMM_ERROR_HUNG, an end of the connection is VMM_ERROR_GONE, a refusal VMM_ERROR_REFUSED.
 * Q9 QEMU reads its socket a byte at a time, some 20 µs each, and acts on the last one. A command that will be needed can be sent but for its end
 *    (qmp_prepare), and so carried out at once when it is (qmp_go). Another command in between takes it back, by the byte that resets QEMU's parser.
 * Q3 QEMU sends the events that a command causes before its reply: after a reply, `events` is up to date.
 * Blocking, one thread. Deadlines are monotonic (clock_now()). */
#ifndef VCFT_VM_QMP_H
#define VCFT_VM_QMP_H

#include "base/clock.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/* What QEMU told without being asked. Times are microseconds of its wall clock. */
struct qmp_events {
	unsigned stops, resumes;         /* how many STOP and RESUME events came */
	int64_t stop_us, resume_us;      /* time of the last one */
	bool running;                    /* the last of them was RESUME */
	bool off;                        /* the guest has powered itself off, or panicked, and was not started since */
	char migration[24];              /* status in the last MIGRATION event; "" before */
};

struct qmp;

/* Takes the socket. */
struct qmp *qmp_new(int socket);
void qmp_free(struct qmp *qmp);
int qmp_fd(const struct qmp *qmp);
const struct qmp_events *qmp_events(const struct qmp *qmp);

/* Greeting and negotiation. */
gboolean qmp_greet(struct qmp *qmp, nsec_t deadline, GError **error);
/* Send and do not wait. arguments: taken, NULL for none. pass_fd: goes along (SCM_RIGHTS), still the caller's; -1: none. */
gboolean qmp_send(struct qmp *qmp, const char *command, json_t *arguments, int pass_fd, GError **error);
/* Q9. No effect while a command is open, or if one is prepared. */
gboolean qmp_prepare(struct qmp *qmp, const char *command, json_t *arguments, GError **error);
/* As qmp_send() of what is prepared. False without error: nothing is. */
gboolean qmp_go(struct qmp *qmp, GError **error);
/* A command was sent whose reply was not taken yet. */
bool qmp_open(const struct qmp *qmp);
/* The reply to it has come: qmp_wait() will not wait. */
bool qmp_replied(const struct qmp *qmp);
/* Read what there is, without waiting. */
gboolean qmp_receive(struct qmp *qmp, GError **error);
/* Wait for the reply. ret_value (may be NULL): a new reference to what it returned. */
gboolean qmp_wait(struct qmp *qmp, nsec_t deadline, json_t **ret_value, GError **error);
/* Send and wait. */
gboolean qmp_command(struct qmp *qmp, const char *command, json_t *arguments, nsec_t deadline, json_t **ret_value, GError **error);
/* Wait until there is something to read (or the end); false: deadline passed. */
bool qmp_poll(struct qmp *qmp, nsec_t deadline);
/* Milliseconds from now to the deadline, rounded up, for poll(). */
int deadline_ms(nsec_t deadline);

#endif
