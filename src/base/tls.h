/* tls.h - bytes between two hosts over a connected TCP socket: under TLS 1.3 with a certificate on both sides, or plain where there are no
 * credentials (`tls: off`, a host alone).
 *
 *   socket ──► tls_new ──handshake──► open ──► tls_read, tls_write ──► tls_free        (the socket stays its owner's)
 *
 *  TLS1 Nothing of ours goes out, and nothing comes in, before the handshake is complete: TLS 1.3 and no other, and a certificate of the other
 *       side that the cluster's CA has signed, that is valid now and made for the side it plays. Whoever connects also names the host that it
 *       wants, and the certificate must name it (TLS2).
 *  TLS2 A certificate names a host by a DNS name among its alternative names, byte for byte: no wildcards, no common name. So who holds the
 *       certificate of one host can be no other. Who accepts asks tls_names() as soon as the other side has said who it is.
 *  TLS3 What tls_write() has taken goes out once and in order; at most TLS_OUT_MAX bytes of it wait here for the socket (tls_unsent()).
 *  TLS4 On a non-blocking socket nothing here waits. On a blocking one reads wait until the deadline, if one is set.
 *  TLS5 What fails stays failed: no byte behind a record that was changed, cut or repeated on the way is handed out.
 * That the other side ends without TLS's goodbye is an end like any other: messages say themselves where they end.
 *
 * Credentials may be shared by threads; a session is used by one at a time. This file and pki.h are the only ones that know GnuTLS. */
#ifndef VCFT_BASE_TLS_H
#define VCFT_BASE_TLS_H

#include "base/clock.h"

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

#define TLS_RECORD 16384u                          /* bytes of plain text in one record at most */
#define TLS_BATCH (4 * TLS_RECORD)                 /* that one tls_write() takes at most */
#define TLS_OUT_MAX (TLS_BATCH + 65536u)           /* waiting: a batch with its overhead, and what the handshake itself may say */

/* ---- who we are ---- */
struct tls_credentials;
/* ca.pem, cert.pem and key.pem of the folder. The certificate must name the host, be valid now and signed by the CA; the key must be its own and
 * no one else's to read. The message says what was expected and how to make it. */
struct tls_credentials *tls_credentials_load(const char *folder, const char *name, GError **error);
void tls_credentials_free(struct tls_credentials *credentials);
/* When the certificate (or a CA's, if that is earlier) ends: seconds since 1970. */
gint64 tls_credentials_end(const struct tls_credentials *credentials);

/* ---- a connection ---- */
struct tls;
enum tls_side { TLS_CONNECTS, TLS_ACCEPTS };
enum tls_progress { TLS_OPEN, TLS_MORE, TLS_FAILED };

/* credentials NULL: plain. expected: the host that must answer (TLS_CONNECTS). credentials must outlive it, fd is the caller's. */
struct tls *tls_new(const struct tls_credentials *credentials, enum tls_side side, int fd, const char *expected);
void tls_free(struct tls *tls);
/* A blocking socket: reads fail with EAGAIN from then on; 0: never. */
void tls_set_deadline(struct tls *tls, nsec_t deadline);
/* Go on with the handshake. TLS_MORE: when the socket can be read (written, if tls_unsent()) again; on a blocking one: the time is over. */
enum tls_progress tls_handshake(struct tls *tls);
/* The other side's certificate names that host (TLS2). Plain: true, there is nothing to tell by. */
bool tls_names(const struct tls *tls, const char *name);
/* As read(): bytes, 0 at the end, -1 with errno. May return before n are there. Returns all that is here already before it asks the socket. */
ssize_t tls_read(struct tls *tls, void *out, size_t n);
/* A whole record waits here: read again before waiting for the socket. */
bool tls_pending(const struct tls *tls);
/* As writev(): how many bytes were taken, -1 with errno (EAGAIN: when the socket can be written). */
ssize_t tls_write(struct tls *tls, const struct iovec *pieces, int count);
/* Some of what was taken waits for the socket. */
bool tls_unsent(const struct tls *tls);
/* Write it: 0, or -1 with errno. */
int tls_flush(struct tls *tls);
/* Why it failed, for a log. */
const char *tls_why(const struct tls *tls);

#endif
